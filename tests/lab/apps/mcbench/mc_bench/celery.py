"""The Celery application: one broker, a queue for each kind of worker. No results are kept in Redis."""

import logging

from celery import Celery, signals

from mc_bench import config, log, release

app = Celery("mc_bench", broker=config.required("CELERY_BROKER_URL"), include=["mc_bench.tasks"])
app.conf.update(
    task_ignore_result=True,
    task_default_queue="default",
    task_routes={
        "mc_bench.administer": {"queue": "admin"},
        "mc_bench.render": {"queue": "render"},
        "mc_bench.run_build": {"queue": "server"},
    },
    task_acks_late=False,
    task_time_limit=86400,
    worker_prefetch_multiplier=1,
    worker_send_task_events=True,
    # A bad release does not answer when it is asked whether it is well.
    worker_enable_remote_control=release.healthy(),
    broker_connection_retry_on_startup=True,
    beat_schedule={"tick": {"task": "mc_bench.tick", "schedule": config.number("SCHEDULER_INTERVAL_SECONDS", 5)}},
    beat_schedule_filename="/tmp/celerybeat-schedule",
)


@signals.setup_logging.connect
def _set_up_logging(**_: object) -> None:
    log.set_up()
    logging.getLogger("mc_bench").info("release %s", release.VERSION)
