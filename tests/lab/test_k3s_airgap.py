"""k3s on hosts without a way out: the program and its images from a directory of the host itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pytest

from tests.lab import images, k3s
from tests.lab.hosts import LabHost
from tests.lab.k3s import Cluster
from tests.lab.lab import Lab
from tests.lab.provision import Run
from tests.lab.state import run

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

ARCHIVE = "k3s-airgap-images-amd64.tar"
PLACE = "/srv/k3s releases"  # a blank, as on a medium that somebody named
WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      containers: [{name: web, image: "registry.invalid/team/NAME:1", imagePullPolicy: IfNotPresent}]
"""


class Site:
    def __init__(self, host: LabHost, provision: Callable[..., Run]) -> None:
        self.host, self._provision = host, provision
        self.cluster = Cluster(host)
        serving = images.make(images.get("busybox"), command=["httpd", "-f", "-p", "8080", "-h", "/var/www"])
        self.program = k3s.executable(k3s.versions()[0])
        self.archives = [k3s.docker_archive({f"registry.invalid/team/{name}:1": serving for name in names}) for names in (("web",), ("web", "late"))]
        # nothing may be begun from here; what comes in is answered
        for words in ("add table inet alone", "add chain inet alone out { type filter hook output priority 0; }", "add rule inet alone out oifname eth0 ct state new counter drop"):
            run("ip", "netns", "exec", host.netns, "nft", words)

    def lay_out(self, archive: bytes) -> None:
        place = self.host.directory / "root" / PLACE.lstrip("/") / k3s.versions()[0]
        place.mkdir(parents=True, exist_ok=True)
        (place / "k3s").write_bytes(self.program)
        (place / ARCHIVE).write_bytes(archive)

    def run(self, archive: bytes, sums: str = "") -> Run:
        text = (
            "from operations import k3s\nfrom operations.k3s import Release\nfrom settings.secret import Secret\n"
            f"k3s.server('t-k3s-airgap', Release({k3s.versions()[0]!r}, {{'amd64': {hashlib.sha256(self.program).hexdigest()!r}}}, url={('file://' + PLACE.replace(' ', '%20'))!r}, "
            f"images={ARCHIVE!r}, images_sha256={sums or hashlib.sha256(archive).hexdigest()!r}), token=Secret('canary-token-without-a-way-out'), "
            "start_seconds=300, name='Run k3s')\n"
        )
        return self._provision(self.host, text)

    def started(self) -> str:
        return self.host.run("systemctl show -p InvocationID --value k3s").stdout


@pytest.fixture(scope="module")
def site(lab: Lab, provision: Callable[..., Run]) -> Iterator[Site]:
    host = k3s.equip(lab.host("t-k3s-airgap"))
    yield Site(host, provision)
    lab.destroy(host)


def test_images_with_another_sum_are_refused_with_nothing_installed(site):
    site.lay_out(site.archives[0])
    done = site.run(site.archives[0], sums="0" * 64)
    assert not done.ok
    assert f"{ARCHIVE}: sha256 must be {'0' * 64}" in done.stdout + done.stderr
    assert not site.host.exists("/usr/local/bin/k3s")
    assert not site.host.exists("/etc/rancher")


def test_a_cluster_comes_up_and_runs_what_the_archive_has(site):
    done = site.run(site.archives[0])
    assert done.ok, done
    site.cluster.apply(WEB.replace("NAME", "web"))
    site.cluster.kubectl("rollout", "status", "deployment/web", "--timeout=240s", timeout=260)
    before = site.started()
    assert site.run(site.archives[0]).changed == []
    assert site.started() == before


def test_another_archive_is_taken_in_and_no_pod_ends(site):
    before = site.cluster.get("pods")["items"][0]["status"]["containerStatuses"][0]["containerID"]
    site.cluster.apply(WEB.replace("NAME", "late"))
    site.lay_out(site.archives[1])
    done = site.run(site.archives[1])
    assert done.ok, done
    site.cluster.kubectl("rollout", "status", "deployment/late", "--timeout=240s", timeout=260)
    assert before in {one["status"]["containerStatuses"][0]["containerID"] for one in site.cluster.get("pods")["items"]}
    started = site.started()
    assert site.run(site.archives[1]).changed == []
    assert site.started() == started
