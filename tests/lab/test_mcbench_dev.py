"""Everything on one host, as inventories/dev.py has it: the guide's development stack by the same deploy."""

from __future__ import annotations

import runpy

import pytest

from settings.mcbench import GROUPS
from tests.lab.hosts import LabHost
from tests.lab.lab import Lab
from tests.lab.mcbench_fleet import ADMIN, finished, fleet_of, submit
from tests.lab.state import REPOSITORY


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_one_host_is_the_whole_fleet(lab: Lab, stranger: LabHost) -> None:
    sample = runpy.run_path(str(REPOSITORY / "inventories" / "dev.py"))
    with fleet_of(lab, one_host=True) as fleet:
        fleet.roles = {group: fleet.hosts for group in ("lab", "mcbench", *GROUPS) if group in (*sample, "lab")}
        run = fleet.run()
        assert run.ok, run
        built = finished(fleet, stranger, submit(fleet, stranger, kind="build", key="on-one-host", script="place a hut"))
        assert (built["state"], built["output"]) == ("done", "built in world of 1.0.0: place a hut\n")
        assert finished(fleet, stranger, submit(fleet, stranger, kind="render", key="picture"))["state"] == "done"
        administered = finished(fleet, fleet.front, submit(fleet, fleet.front, ADMIN, kind="administer", key="models"), ADMIN)
        assert administered["state"] == "done"
        assert "NOT WELL" not in fleet.front.run("mcbench-health").stdout
        assert (fleet.run().changed, fleet.run(dry=True).changed) == ([], [])
