"""tests/verify against a real host: green where all is well, red with the right name where something is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab.deployed import CONVERGED, DOMAIN, Deployed
from tests.lab.hosts import LabHost
from tests.lab.state import wait_for
from tests.lab.test_fleet import everything

# A container shares its kernel and its clock; the lab declares no swap.
SKIPPED = {
    "test_clock_is_synchronised",
    "test_kernel_parameters_are_live",
    "test_swap_is_the_declared_size",
}

# What an operator, an attacker or bad luck does to a host, and the check that tells of it.
FAULTS = {
    "test_secrets_are_readable_by_root_alone": "chmod 644 /etc/multiverse-gateway/*.env",
    "test_state_is_readable_by_the_gateway_alone": "chmod 755 /var/lib/multiverse-gateway",
    "test_code_cannot_be_changed_by_the_gateway": "chown -h gateway /opt/multiverse-gateway/releases/*",
    "test_log_rotation_is_set_up": "rm /etc/logrotate.d/multiverse-gateway",
    "test_process_supervisor_runs_the_gateway_and_starts_it_at_boot": "rm /etc/systemd/system/multi-user.target.wants/multiverse-gateway-*",
    "test_unit_is_sandboxed": "d=/etc/systemd/system/multiverse-gateway-.service.d; mkdir $d; "
    "printf '[Service]\\nProtectSystem=no\\nNoNewPrivileges=no\\nSystemCallFilter=\\nCapabilityBoundingSet=~\\n' >$d/x.conf; "
    "systemctl daemon-reload",
    "test_admin_endpoint_refuses_undeclared_networks": "sed -i '/deny all/d' /etc/nginx/sites-enabled/*.conf; "
    "systemctl reload nginx",
    "test_certificate_is_valid_for_every_name": "mkdir /root/tls; cd /root/tls; openssl req -x509 -nodes -newkey rsa:2048 "
    f"-subj /CN={DOMAIN} -addext subjectAltName=DNS:{DOMAIN} -keyout privkey.pem -out fullchain.pem; chmod 600 privkey.pem; "
    "ln -sfn /root/tls /etc/hostwright/tls/multiverse-gateway; systemctl reload nginx",
    "test_health_endpoint_answers_from_here": "",  # the self-signed certificate of the line above
    "test_hsts_is_sent_as_declared": "sed -i '/location \\/ {/i add_header Strict-Transport-Security \"max-age=1\" always;' "
    "/etc/nginx/sites-enabled/*.conf; systemctl reload nginx",
    "test_log_has_no_errors_since_the_start": f"printf '\\377' | curl -sk -m 10 --data-binary @- "
    f"--resolve {DOMAIN}:443:127.0.0.1 https://{DOMAIN}/v1/inference",
    "test_nginx_runs_a_valid_configuration_and_starts_at_boot": "echo nonsense >/etc/nginx/conf.d/broken.conf",
    "test_firewall_opens_exactly_the_declared_ports": "ufw allow 9999/tcp",
    "test_nothing_listens_outside_loopback_that_is_not_declared": "systemd-run --quiet python3 -m http.server 9999; "
    "for try in $(seq 50); do curl -s -o /dev/null 127.0.0.1:9999 && break; sleep 0.1; done",
    "test_sshd_takes_keys_and_no_passwords": "sed -i 's/^PasswordAuthentication no/PasswordAuthentication yes/' "
    "/etc/ssh/sshd_config.d/*.conf",
    "test_security_updates_install_themselves": "systemctl disable apt-daily-upgrade.timer",
    "test_journal_is_kept_within_its_limits": "rm /etc/systemd/journald.conf.d/*.conf",
    "test_kernel_parameters_are_written_for_the_next_boot": "sed -i '/tcp_syncookies/d' /etc/sysctl.d/*.conf",
    "test_hostname_is_the_declared_one": "echo other >/etc/hostname",
    "test_timezone_is_the_declared_one": "ln -sfn /usr/share/zoneinfo/Asia/Tokyo /etc/localtime",
    "test_no_unit_has_failed": "systemd-run --quiet --wait false",
    "test_backups_are_configured": "systemctl disable --now hostwright-backup-gateway.timer",
    "test_every_repository_has_the_last_backup": "",  # an old one, by the line below
    "test_last_backup_is_recent_and_good": "sed -i 's/\"last_success\": \"20../\"last_success\": \"2020/' /var/lib/hostwright/backup/gateway.json",
    "test_backup_was_restored_and_checked_lately": "sed -i 's/\"last_verified\": \"20../\"last_verified\": \"2020/' /var/lib/hostwright/backup/gateway.json",
    "test_backup_secrets_are_readable_by_root_alone": "chmod 644 /etc/hostwright/backup/*.env",
    "test_monitoring_can_read_what_the_host_is": "rm /var/lib/prometheus/node-exporter/hostwright.prom",
    "test_packages_are_installed": "dpkg --remove --force-depends tmux",
}


def failing(report: str) -> set[str]:
    """Return the names of the checks that failed, from pytest's summary."""
    return set(re.findall(r"(?m)^(?:FAILED|ERROR) \S+::(\w+)", report))


def unchanging(host: LabHost) -> list[str]:
    """Return what nobody but a check could have changed; not the count of logins in the last line, nor the application's
    database: after a power cut SQLite writes its log back when the first reader (a check asks the admin API) closes it."""
    return [line for line in everything(host)[:-1] if "/gateway.db" not in line]


def converged(deployed: Deployed) -> LabHost:
    """The host as it was after its deploy, with nothing at work any more."""
    deployed.host.reset(CONVERGED)
    # A boot goes on after sshd answers: it marks /var as updated, and timers that the host missed are made up for.
    deployed.host.run("systemctl is-system-running --wait", check=False)
    wait_for("the end of all jobs", lambda: "No jobs" in deployed.host.run("systemctl list-jobs").stdout, 60)
    return deployed.host


def test_provisioned_host_passes_and_is_not_changed(deployed: Deployed) -> None:
    converged(deployed)
    before = unchanging(deployed.host)
    done = deployed.verify("-v")
    assert done.returncode == 0, done.stdout
    assert unchanging(deployed.host) == before
    assert set(re.findall(r"::(\w+)\[\S+ SKIPPED", done.stdout)) == SKIPPED
    assert set(re.findall(r"::(\w+)\[\S+ PASSED", done.stdout)) > set(FAULTS)


def test_each_fault_fails_its_check(deployed: Deployed) -> None:
    host = converged(deployed)
    for fault in FAULTS.values():
        host.run(fault or ":", check=False)
    done = deployed.verify()
    assert done.returncode == 1
    assert sorted(set(FAULTS) - failing(done.stdout)) == []


def test_unreachable_host_fails_every_check_in_one_line(deployed: Deployed) -> None:
    deployed.host.reset(CONVERGED)
    deployed.host.cut_link()
    done = deployed.verify("-v")
    deployed.host.restore_link()
    assert done.returncode == 1
    about_the_repository = {"test_recovery_is_documented"}
    assert set(re.findall(r"::(\w+)\[\S+ PASSED", done.stdout)) <= about_the_repository
    assert f"{deployed.host.name} cannot be checked: ssh: connect to host {deployed.host.address}" in done.stdout


def test_host_with_another_key_is_not_asked(deployed: Deployed, tmp_path: Path) -> None:
    """A check that talks to an impostor would certify the impostor."""
    deployed.host.reset(CONVERGED)
    known = Path(str(deployed.host.data["ssh_known_hosts_file"]))
    inventory = deployed.inventory()
    (tmp_path / "known_hosts").write_text("")
    inventory.write_text(inventory.read_text().replace(str(known), str(tmp_path / "known_hosts")))
    done = deployed.verify(inventory=inventory)
    assert done.returncode == 1
    assert "Host key verification failed" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", "nobody"), "--limit nobody: matches no host"),
        (("--inventory", "inventories/missing.py"), "inventories/missing.py: pyinfra cannot read it"),
    ],
)
def test_unusable_inventory_is_refused(deployed: Deployed, options: tuple[str, ...], message: str) -> None:
    done = deployed.verify(*options)
    assert done.returncode == 4  # pytest's "usage error": nothing was checked
    assert message in done.stderr
