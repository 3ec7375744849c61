"""Prometheus and Alertmanager on a real host, read back with their own HTTP interfaces, promtool, amtool and ss."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.lab.kill import SEED, kill_run, spread
from tests.lab.provision import command_line
from tests.lab.state import wait_for

CANARY = "https://hooks.example.test/canary-webhook-token"
GOOD = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": [{"job_name": "itself", "static_configs": [{"targets": ["127.0.0.1:9090"]}]}]}
RULE = "groups:\n  - name: shop\n    rules:\n      - record: shop:up\n        expr: {expression}\n"
NAMES = ["Run Prometheus", "Run Alertmanager"]


def deploy(configuration=None, expression="sum(up)", receiver=CANARY, matcher="severity=warning", **words):
    tell = {
        "route": {"receiver": "all", "routes": [{"receiver": "all", "matchers": [matcher]}]},
        "receivers": [{"name": "all", "webhook_configs": [{"url": receiver}]}],
    }
    return f"""from operations import prometheus
from settings.secret import Secret
prometheus.server({configuration or GOOD!r}, rules={{"shop.yml": {RULE.format(expression=expression)!r}}},
                  consoles={{"page.html": "up: {{{{ query \\"shop:up\\" | first | value }}}}"}}, name="Run Prometheus", **{words!r})
prometheus.alertmanager(Secret({yaml.safe_dump(tell)!r}), name="Run Alertmanager")
"""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def host(lab, request):
    fresh = lab.host(f"t-prometheus-{request.param}", request.param)
    yield fresh
    lab.destroy(fresh)


def ask(host, path, port=9090):
    return json.loads(host.run(f"curl -gfsS -m 20 'http://127.0.0.1:{port}/api/{path}'").stdout)["data"]


def value(host, query):
    found = ask(host, f"v1/query?query={query}")["result"]
    return float(found[0]["value"][1]) if found else None


def pids(host):
    return [host.run(f"systemctl show -p MainPID --value {unit}").stdout.strip() for unit in ("prometheus.service", "prometheus-alertmanager.service")]


def listening(host):
    lines = host.run("ss -Htlnp").stdout.splitlines()
    return {line.split()[3] for line in lines if "prometheus" in line}


@pytest.mark.soak
def test_set_noop_update_refuse_heal(host, provision):
    done = provision(host, deploy())
    assert (done.ok, done.changed) == (True, NAMES), done
    assert CANARY not in done.stdout + done.stderr
    wait_for("the rule's first value", lambda: value(host, "shop:up") == 1, 60, pause=0.5)
    # nothing else ever listened: the package's own start was held back
    assert listening(host) == {"127.0.0.1:9090", "127.0.0.1:9093"}
    assert "0.0.0.0" not in host.run("journalctl -u prometheus -u prometheus-alertmanager -o cat --no-pager").stdout
    assert host.run("stat -c '%a %U' /etc/prometheus/alertmanager.yml").stdout.split() == ["600", "prometheus"]
    assert CANARY not in host.run("ps -eo args").stdout
    assert host.run("curl -fsS http://127.0.0.1:9090/consoles/page.html").stdout.strip() == "up: 1"

    before = pids(host)
    assert provision(host, deploy()).changed == []
    assert pids(host) == before

    # what can be read anew is
    done = provision(host, deploy(expression="sum(up) + 1", receiver=CANARY + "2"), extra=["--diff", "-vv"])
    assert done.changed == NAMES, done
    assert CANARY not in done.stdout + done.stderr
    wait_for("the new rule's value", lambda: value(host, "shop:up") == 2, 60, pause=0.5)
    assert pids(host) == before
    assert (CANARY + "2") in host.read("/etc/prometheus/alertmanager.yml")

    # a rule that promtool refuses, and a configuration that amtool refuses, never reach them
    done = provision(host, deploy(expression="sum(up"))
    assert done.failed == ["Run Prometheus"], done
    assert "do not pass" in done.stderr
    assert "unclosed left parenthesis" in done.stderr
    done = provision(host, deploy({"scrape_configs": [{"job_name": "a"}, {"job_name": "a"}]}))
    assert done.failed == ["Run Prometheus"], done
    done = provision(host, deploy(expression="sum(up) + 1", receiver="nowhere").replace("name: all", "name: other"))
    assert done.failed == ["Run Alertmanager"], done
    assert pids(host) == before
    assert value(host, "shop:up") == 2
    assert (CANARY + "2") in host.read("/etc/prometheus/alertmanager.yml")
    assert host.run("find /etc/prometheus -name '.*dpkg*'").stdout == ""

    # by hand: the file that is read, and the process
    host.run("echo broken >> /etc/prometheus/rules/shop.yml; systemctl reload prometheus; systemctl stop prometheus-alertmanager")
    wait_for("Prometheus to say no", lambda: value(host, "prometheus_config_last_reload_successful") == 0, 60, pause=0.5)
    assert provision(host, deploy(expression="sum(up) + 1", receiver=CANARY + "2")).changed == NAMES
    wait_for("Prometheus to say yes", lambda: value(host, "prometheus_config_last_reload_successful") == 1, 60, pause=0.5)
    assert pids(host)[0] == before[0]

    # where it listens costs a restart
    assert provision(host, deploy(expression="sum(up) + 1", receiver=CANARY + "2", listen="127.0.0.1:9095")).changed == ["Run Prometheus"]
    assert listening(host) == {"127.0.0.1:9095", "127.0.0.1:9093"}


@pytest.mark.soak
def test_units_are_sealed(host):
    for unit in ("prometheus.service", "prometheus-alertmanager.service"):
        verdict = host.run(f"systemd-analyze security --no-pager {unit} | tail -1").stdout
        assert float(verdict.split()[-3]) <= 1.5, verdict


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("listen='0.0.0.0:9090'", "listen must be one address, not all of them"),
        ("listen='9090'", "listen must be an address and a port"),
        ("rules={'../x.yml': ''}", "rules: not a file name such as 'shop.yml': '../x.yml'"),
        ("retention_days=0", "retention_days and retention_gb must be at least 1"),
    ],
)
@pytest.mark.soak
def test_bad_input_is_refused(host, provision, words, said):
    done = provision(host, f"from operations import prometheus\nprometheus.server({{}}, {words}, name='Run')\n")
    assert not done.ok
    assert said in done.stderr


ALL = """from operations import exporter
exporter.exporter("sites", package="prometheus-blackbox-exporter", listen="127.0.0.1:9115", configuration="modules: {site: {prober: http}}", name="Show sites")
"""


@pytest.mark.soak
def test_ten_kills_end_like_an_undisturbed_run(lab, provision, tmp_path):
    """One run after the other killed ever later, and one that is not; and the same with a change of all that is reloaded."""
    fresh = lab.host("t-prometheus-kills")
    for text, longest in ((ALL + deploy(), 8.0), (ALL.replace("http}", "tcp}") + deploy(expression="sum(up) + 1", receiver=CANARY + "2"), 2.0)):
        where = [kill_run(command_line(tmp_path, fresh, text), {}, point) for point in spread(10, 3, longest)]
        said = f"seed {SEED}, killed in {where}"
        done = provision(fresh, text)
        assert done.ok, f"{said}\n{done}"
        assert provision(fresh, text).changed == [], said
        assert listening(fresh) == {"127.0.0.1:9090", "127.0.0.1:9093", "127.0.0.1:9115"}, said
        assert fresh.run("find /etc/prometheus /etc/hostwright /etc/systemd -name '.*dpkg-*'").stdout == "", said
        assert fresh.run("systemctl --failed --plain --no-legend").stdout == "", said
    wait_for("the new rule's value", lambda: value(fresh, "shop:up") == 2, 60, pause=0.5)
    assert "prober: tcp" in fresh.run("curl -fsS http://127.0.0.1:9115/config").stdout
    lab.destroy(fresh)
