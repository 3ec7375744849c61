"""What the guide asks of an mcbench host: containers, their limits, who reaches them, and what they are told."""

from __future__ import annotations

import ipaddress
import json
import shlex
from typing import Any

import pytest

from deploys.mcbench import FLOWER_PORT, JOBS, NETWORK, SOCKET, name, published_service
from deploys.mcbench_health import PATH, PROGRAM
from settings import Host, Mcbench, Secret
from settings.mcbench import COMPONENTS, SERVICES, WEB, WORKERS
from tests.verify.conftest import Machine

SYSTEM = "mcbench"
# Names only: a secret must not come here.
_INSPECT = r"""
docker ps -aq --filter label=hostwright.container --filter label=hostwright.image | xargs -r docker inspect | python3 -c '
import json, sys
for each in json.load(sys.stdin) or []:
    config, host = each["Config"], each["HostConfig"]
    print(json.dumps({
        "name": each["Name"].lstrip("/"), "component": config["Labels"].get("hostwright.component", ""),
        "job": config["Labels"].get("hostwright.job", ""), "image": config["Image"], "status": each["State"]["Status"],
        "health": each["State"].get("Health", {}).get("Status", ""), "restart": host["RestartPolicy"]["Name"],
        "memory": host["Memory"], "cpus": host["NanoCpus"], "drop": host["CapDrop"] or [], "privileged": host["Privileged"],
        "mounts": [mount["Source"] for mount in each["Mounts"]], "networks": sorted(each["NetworkSettings"]["Networks"]),
        "variables": sorted(line.partition("=")[0] for line in config["Env"]), "log": host["LogConfig"]["Type"],
        "ports": sorted({(one["HostIp"], int(one["HostPort"])) for ports in (host["PortBindings"] or {}).values() for one in ports}),
    }))
'"""


def _mcbench(settings: Host) -> Mcbench:
    assert settings.mcbench is not None
    return settings.mcbench


def _status(domain: str, path: str, *, outside: bool = False) -> str:
    """Ask a site of this host for a path: from loopback, or from the host's own outer address."""
    to = "$(hostname -I | cut -d' ' -f1)" if outside else "127.0.0.1"
    url = shlex.quote(f"https://{domain}{path}")
    return f'curl -sk -m 10 -o /dev/null -w "%{{http_code}}\\n" --resolve "{domain}:443:{to}" {url}; '


def _health_domains(found: Mcbench) -> list[str]:
    """The first name of each site that has an API behind it."""
    domains = [found.api_domain] if "api" in found.roles else []
    domains += [found.admin_domain] if "admin" in found.roles else []
    return [domain for domain in domains if domain]


def _health(settings: Host) -> str:
    found = _mcbench(settings)
    return "".join(_status(domain, found.health_path) for domain in _health_domains(found))


def _admin_from_outside(settings: Host) -> str:
    found = _mcbench(settings)
    asked = "".join(_status(domain, "/", outside=True) for domain in found.domains if domain not in found.api_domains)
    return f"hostname -I | cut -d' ' -f1; {asked}" if asked else ""


def _flower(settings: Host) -> str:
    found = _mcbench(settings)
    return _status(found.flower_domain or "", "/") if "admin-flower" in found.components else ""


def _page(settings: Host) -> str:
    """The host's health page on its first web site: asked by the host itself, and from its outer address."""
    domains = _health_domains(_mcbench(settings))
    if not domains:
        return ""
    asked = (_status(domains[0], f"{PATH}{ending}") for ending in ("", ".json"))
    return "".join(asked) + "hostname -I | cut -d' ' -f1; " + _status(domains[0], PATH, outside=True)


def _redis(settings: Host) -> str:
    if "redis" not in _mcbench(settings).components:
        return ""
    ask = "export REDISCLI_AUTH=$REDIS_PASSWORD; for key in appendonly maxmemory-policy maxmemory; do redis-cli config get $key; done"
    return f"docker exec mcbench-redis sh -c {shlex.quote(ask)}; docker exec mcbench-redis redis-cli ping"


def _images(settings: Host) -> str:
    return " ".join(["docker image inspect -f '{{.Architecture}}'", *map(shlex.quote, _mcbench(settings).managed_images)])


EVIDENCE = {
    "mcbench-containers": _INSPECT,
    "mcbench-health": _health,
    "mcbench-host-health": f"{PROGRAM} --json | tr -d '\\n'; echo",
    "mcbench-health-page": _page,
    "mcbench-admin-from-outside": _admin_from_outside,
    "mcbench-flower": _flower,
    "mcbench-redis": _redis,
    "mcbench-images": _images,
    "mcbench-architecture": "uname -m",
    "mcbench-env-files": "stat -c '%a %U %n' /etc/hostwright/containers/*.env /var/lib/hostwright/replicas 2>/dev/null || :",
    "mcbench-cleanup": "systemctl is-enabled hostwright-docker-cleanup.timer 2>&1 || :",
    "mcbench-socket-readers": f"docker ps -q | xargs -r docker inspect -f '{{{{.Name}}}} {{{{range .Mounts}}}}{{{{.Source}}}} {{{{end}}}}' | grep -F {SOCKET.removeprefix('/var')} || :",
}


def _containers(machine: Machine) -> dict[str, list[dict[str, Any]]]:
    """The containers of each component; jobs that have ended are none of them."""
    found: dict[str, list[dict[str, Any]]] = {component: [] for component in _mcbench(machine.settings).components}
    for line in machine.lines("mcbench-containers"):
        each = json.loads(line)
        component = (each["component"] or each["name"]).removeprefix("mcbench-")
        if component in found and not each["job"]:
            found[component].append(each)
    return found


def test_every_component_runs_as_often_as_it_should(machine: Machine) -> None:
    found = _containers(machine)
    wanted = {component: _mcbench(machine.settings).count(component) for component in found}
    running = {component: sum(one["status"] == "running" for one in those) for component, those in found.items()}
    assert running == wanted


def test_nothing_runs_that_this_host_should_not_run(machine: Machine) -> None:
    every = [json.loads(line) for line in machine.lines("mcbench-containers")]
    running = {(one["component"] or one["name"]).removeprefix("mcbench-") for one in every if one["status"] == "running" and not one["job"]}
    assert sorted(running & set(COMPONENTS) - {*_mcbench(machine.settings).components}) == []


def test_no_container_is_unwell_or_stays_down(machine: Machine) -> None:
    every = [one for those in _containers(machine).values() for one in those]
    assert [one["name"] for one in every if one["health"] not in ("", "healthy")] == []
    assert [one["name"] for one in every if one["restart"] not in ("unless-stopped", "always")] == []


def test_containers_are_of_the_declared_images(machine: Machine) -> None:
    settings = _mcbench(machine.settings)
    found = {component: {one["image"] for one in those} for component, those in _containers(machine).items()}
    assert found == {component: {settings.image(component)} for component in settings.components}


def test_containers_have_the_declared_limits_and_rights(machine: Machine) -> None:
    settings = _mcbench(machine.settings)
    for component, those in _containers(machine).items():
        cpus, memory_mb = settings.limit(component)
        for one in those:
            assert (one["memory"], one["cpus"]) == (memory_mb * 1024 * 1024, round(cpus * 1e9)), one["name"]
            assert (one["drop"], one["privileged"]) == (["ALL"], False), one["name"]
            assert one["log"] == settings.log_driver, one["name"]


def test_each_component_is_told_its_own_variables_only(machine: Machine) -> None:
    settings = _mcbench(machine.settings)
    # An image may bring variables of its own; a secret it may not.
    secrets = {
        key
        for component in settings.components
        for key, value in settings.environment(component).items()
        if isinstance(value, Secret)
    }
    for component, those in _containers(machine).items():
        own = set(settings.environment(component))
        for one in those:
            assert set(one["variables"]) >= own, one["name"]
            assert set(one["variables"]) & secrets == own & secrets, one["name"]
            assert ("WORKER_NAME" in one["variables"]) == (component in WORKERS), one["name"]


def test_files_with_secrets_are_roots_alone(machine: Machine) -> None:
    for line in machine.lines("mcbench-env-files"):
        mode, owner, path = line.split(maxsplit=2)
        assert (mode, owner) in (("600", "root"), ("700", "root")), path


def test_docker_socket_is_the_server_workers_alone(machine: Machine) -> None:
    readers = [line.split()[0].lstrip("/") for line in machine.lines("mcbench-socket-readers")]
    assert [each for each in readers if not each.startswith(name("server-worker"))] == []


def test_containers_are_on_their_own_networks(machine: Machine) -> None:
    for component, those in _containers(machine).items():
        wanted = sorted([NETWORK, JOBS]) if component == "server-worker" else [NETWORK]
        assert [one["networks"] for one in those] == [wanted] * len(those), component


def test_containers_are_published_on_loopback_or_to_the_fleet(machine: Machine) -> None:
    settings = _mcbench(machine.settings)
    for component, those in _containers(machine).items():
        for one in those:
            ports = {(address, port) for address, port in one["ports"]}
            if component in WEB:
                assert {address for address, _ in ports} == {"127.0.0.1"}, one["name"]
            elif component == "admin-flower":
                assert ports == {("127.0.0.1", FLOWER_PORT)}
            else:
                meant = published_service(settings, component) if component in SERVICES else ()
                assert ports == {(each.address, each.port) for each in meant}, one["name"]


def test_host_says_that_all_of_its_components_are_well(machine: Machine) -> None:
    found = json.loads(machine.lines("mcbench-host-health")[-1])
    assert [one["component"] for one in found["components"] if not one["well"]] == []
    assert [one["component"] for one in found["components"]] == list(_mcbench(machine.settings).components)
    assert found["well"]


def test_health_page_is_for_declared_networks(machine: Machine) -> None:
    if not machine.output("mcbench-health-page").text:
        pytest.skip(f"{machine.target.name} has no API")
    page, as_json, address, outside = machine.lines("mcbench-health-page")
    assert (page, as_json) == ("200", "200")
    declared = any(ipaddress.ip_address(address) in ipaddress.ip_network(each) for each in _mcbench(machine.settings).health_networks)
    assert outside == ("200" if declared else "403")


def test_sites_answer_their_health_path(machine: Machine) -> None:
    if not machine.output("mcbench-health").text:
        pytest.skip(f"{machine.target.name} has no API")
    assert set(machine.lines("mcbench-health")) == {"200"}


def test_admin_sites_refuse_undeclared_networks(machine: Machine) -> None:
    settings = _mcbench(machine.settings)
    if not machine.output("mcbench-admin-from-outside").text:
        pytest.skip(f"{machine.target.name} has no admin site")
    address, *answers = machine.lines("mcbench-admin-from-outside")
    if any(ipaddress.ip_address(address) in ipaddress.ip_network(each) for each in settings.admin_networks):
        pytest.skip(f"{address}, the host's own address, is in mcbench_admin_networks")
    assert set(answers) == {"403"}


def test_flower_wants_a_password(machine: Machine) -> None:
    if not machine.output("mcbench-flower").text:
        pytest.skip(f"{machine.target.name} has no Flower")
    assert machine.lines("mcbench-flower") == ["401"]


def test_redis_loses_no_task_and_wants_a_password(machine: Machine) -> None:
    if not machine.output("mcbench-redis").text:
        pytest.skip(f"{machine.target.name} has no Redis")
    said = machine.lines("mcbench-redis")
    values = dict(zip(said[:6:2], said[1:6:2], strict=True))
    assert (values["appendonly"], values["maxmemory-policy"]) == ("yes", "noeviction")
    assert int(values["maxmemory"]) > 0
    assert "NOAUTH" in said[6]


def test_every_named_image_is_here_and_for_this_machine(machine: Machine) -> None:
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[machine.text("mcbench-architecture").strip()]
    assert set(machine.lines("mcbench-images")) == {architecture}
    if "render" in _mcbench(machine.settings).roles:
        assert architecture == "amd64"


def test_cleanup_is_scheduled(machine: Machine) -> None:
    machine.skip_unless("mcbench_cleanup_enabled")
    assert machine.text("mcbench-cleanup").strip() == "enabled"
