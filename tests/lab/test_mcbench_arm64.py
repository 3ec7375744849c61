"""A host for rendering that is arm64, where the renderer is for amd64 alone: refused on the real thing, nothing changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import ENV
from tests.lab.provision import Run
from tests.lab.state import REPOSITORY
from tests.lab.test_fleet import everything

# All that a host for rendering needs is somewhere else, so it can be a fleet of its own.
DATA = {
    "certificate_mode": "self-signed",
    "backup_enabled": False,
    "docker_source": "distribution",
    "mcbench_registry": "registry.mcbench.test:5000",
    "mcbench_version": "v1.0.0",
    "mcbench_postgres_external": True,
    "mcbench_postgres_host": "10.9.9.9",
    "mcbench_redis_external": True,
    "mcbench_redis_host": "10.9.9.9",
    "mcbench_object_external": True,
    "mcbench_object_store_dsn": "10.9.9.9:9000",
    "mcbench_allow_small": True,
    **{
        f"mcbench_{key}": f"env:MCBENCH_{key.upper()}"
        for key in ("postgres_password", "redis_password", "object_store_access_key", "object_store_secret_key")
    },
}


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_arm64_host_for_rendering_is_refused_and_nothing_on_it_changes(lab: Lab, provision: Callable[..., Run]) -> None:
    arm = lab.host("t-mcbench-arm", architecture="arm64")
    try:
        assert arm.run("uname -m").stdout == "aarch64\n"
        groups = {"lab": [arm], "mcbench": [arm], "mcbench_render": [arm]}
        before = everything(arm)[:-1]
        run = provision(arm, REPOSITORY / "deploy.py", data=DATA, groups=groups, env=ENV, timeout=600)
        assert run.rc == 1, run
        assert "architecture: must be x86_64, got aarch64" in run.stderr, run
        assert run.failed == ["Check host"], run
        assert run.changed == []
        assert everything(arm)[:-1] == before

        # The same host as a general worker passes: it is rendering that it cannot do.
        run = provision(
            arm, "from deploys import current\nfrom operations import preflight\n"
            "preflight.host(current().requirements, name='Check host')",
            data=DATA, groups={**groups, "mcbench_render": [], "mcbench_worker": [arm]}, env=ENV, timeout=600,
        )  # fmt: skip
        assert run.ok, run
    finally:
        lab.destroy(arm)
