"""Workers of cricksy in containers (the guide's option B): what one is made from, and how it is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from operations import script
from operations.container import Health, Mount, Network, Spec
from settings import Cricksy
from settings.cricksy import CA_FILE
from settings.secret import Secret

# The same question as to a worker of mcbench; only the variable with the broker's address has another name.
_ASK = (script.FILES / "mcbench/worker.py").read_text()
_MIB = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}


def ask(what: str) -> tuple[str, ...]:
    """Return the command that asks a worker inside of its container: ``ping``, ``quiesce`` or ``busy``."""
    return ("sh", "-c", 'CELERY_BROKER_URL="$CRICKSY_CELERY_BROKER_URL" exec python3 -c "$0" "$1"', _ASK, what)


def command(settings: Cricksy) -> tuple[str, ...]:
    """Return what a container runs: the same words as the unit, each instance with its own queues and concurrency."""
    own = [
        f"{one.number}) set -- {','.join(one.queues or settings.worker_queues)} {one.concurrency or settings.worker_concurrency} ;; "
        for one in settings.worker_special
    ]
    program = (
        f"case {{instance}} in {''.join(own)}*) set -- {','.join(settings.worker_queues)} {settings.worker_concurrency} ;; esac; "
        f"exec celery --app {settings.celery_app} worker --hostname={{worker}} --loglevel={settings.log_level.lower()} "
        f'--queues="$1" --concurrency="$2" --prefetch-multiplier={settings.worker_prefetch_multiplier} '
        f"--max-tasks-per-child={settings.worker_max_tasks_per_child} --time-limit={settings.task_time_limit} "
        f"--soft-time-limit={settings.task_soft_time_limit}"
    )
    return ("sh", "-c", program)


def memory_mb(size: str) -> int:
    """Return systemd's ``1G`` in the engine's MiB."""
    return max(6, int(int(size[:-1]) * _MIB[size[-1]]))


def spec(settings: Cricksy, environment: Secret) -> Spec:
    """
    Return what a worker's container is to be: as sealed as the unit is.

    + environment: in the words of docker
    """
    ca: Sequence[Mount] = (Mount(CA_FILE, CA_FILE, read_only=True),) if settings.uses_ca else ()
    # a file that is mounted stays the old one when another takes its place
    authority = hashlib.sha256(settings.infra_ca.unmask().encode()).hexdigest()[:12] if settings.uses_ca else ""
    return Spec(
        image=settings.worker_image,
        command=command(settings),
        environment=environment,
        mounts=tuple(ca),
        # it listens nowhere; a database on the host's loopback is reached as by a unit
        networks=(Network("host"),),
        labels={"cricksy.authority": authority} if authority else {},
        memory_mb=memory_mb(settings.worker_memory_max),
        pids=512,
        health=Health(ask("ping"), interval_seconds=15, timeout_seconds=30, start_seconds=settings.worker_start_seconds),
        user=settings.worker_image_user,
        read_only=True,
        tmpfs=("/tmp:mode=1777",),
        # docker stop and the host's end: a task may take its whole time
        stop_seconds=settings.task_time_limit + 30,
    )
