# Asked by the rollout inside of a worker's container: `ping`, `quiesce` (take no more tasks) or `busy` (how many are left).
# It speaks to the worker through the broker, as `celery inspect` and `celery control` do, and needs to know neither the
# application's modules nor its queues: only CELERY_BROKER_URL and WORKER_NAME, which every worker has.
import os
import sys

from celery import Celery

SECONDS = 10


def main(what):
    app = Celery(broker=os.environ["CELERY_BROKER_URL"])
    node = os.environ["WORKER_NAME"]
    ask = app.control.inspect([node], timeout=SECONDS, limit=1)
    if what == "ping":
        sys.exit(0 if (ask.ping() or {}).get(node) else 1)
    if what == "quiesce":
        queues = (ask.active_queues() or {}).get(node)
        if queues is None:
            sys.exit(f"{node} does not answer")
        for queue in queues:
            app.control.cancel_consumer(queue["name"], destination=[node], reply=True, timeout=SECONDS, limit=1)
        return
    active = (ask.active() or {}).get(node)
    # What it has taken from the queue and not begun: it will, or give it back when it is stopped.
    reserved = (ask.reserved() or {}).get(node)
    if active is None or reserved is None:
        print(f"{node} does not answer", file=sys.stderr)  # noqa: T201
        print(1)  # noqa: T201 - not known to be idle
    else:
        print(len(active) + len(reserved))  # noqa: T201


main(sys.argv[1])
