"""An application on a k3s of one node, both by operations: what test_k3s and test_manifests show at length, the short way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab import k3s
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.test_k3s import Site
from tests.lab.test_manifests import SECRET, Shop


@pytest.fixture(scope="module")
def site(lab: Lab, provision: Callable[..., Run]) -> Iterator[Site]:
    if reason := k3s.missing():
        pytest.skip(reason)
    made = Site(lab, provision)
    yield made
    made.mirror.stop()
    lab.destroy(made.host)


@pytest.fixture(scope="module")
def shop(site: Site, provision: Callable[..., Run]) -> Shop:
    assert site.run().ok
    return Shop(site.cluster, site.registry, provision)


def test_a_node_is_ready_and_the_second_run_restarts_nothing(site: Site) -> None:
    first = site.run()
    assert (first.ok, first.changed) == (True, ["Run k3s server"]), first
    node = site.nodes()["t-k3s"]["status"]
    assert {one["type"]: one["status"] for one in node["conditions"]}["Ready"] == "True"
    assert node["nodeInfo"]["kubeletVersion"] == k3s.versions()[0]
    before = site.life()
    second = site.run()
    assert (second.ok, second.changed) == (True, []), second
    assert site.life() == before


def test_manifests_are_applied_once_and_what_fails_goes_back_as_a_whole(shop: Shop) -> None:
    first = shop.run()
    assert (first.ok, first.changed) == (True, ["Shop"]), first
    before, secrets = shop.pods(), shop.names("secrets")
    assert (len(before), shop.says()) == (2, "one")
    second = shop.run()
    assert (second.ok, second.changed) == (True, []), second

    bad = shop.run(greeting="two", secret=SECRET + "x", mode="crashes", seconds=60)
    assert bad.failed == ["Shop"], bad
    assert "shop cannot find its counter" in bad.stderr
    assert "is back: workloads, config and secrets" in bad.stderr
    assert SECRET not in bad.stdout + bad.stderr
    assert (shop.pods(), shop.says(), shop.names("secrets")) == (before, "one", secrets)
    assert shop.run().changed == []
