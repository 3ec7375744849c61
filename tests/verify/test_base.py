"""What every host has: accounts, sshd, updates, time, journal, kernel parameters, name and swap."""

from __future__ import annotations

import re
import shlex

from deploys.base import EXPORTER, kernel_parameters, packages
from settings import Host
from tests.verify.conftest import Machine


def _packages(settings: Host) -> str:
    names = " ".join(shlex.quote(name) for name in packages(settings.base))
    return f"dpkg-query --show --showformat='${{db:Status-Status}} ${{Package}}\\n' {names}" if names else ""


def _removed_accounts(settings: Host) -> str:
    removed = " ".join(shlex.quote(name) for name in settings.base.removed_admins)
    return f"getent passwd {removed} || :" if removed else ""  # exit status 2: some are gone, as they should


def _keys(settings: Host) -> str:
    lines = [
        f"home=$(getent passwd {name} | cut -d: -f6); sed 's|^|{name} |' \"$home/.ssh/authorized_keys\""
        for name in (shlex.quote(admin.name) for admin in settings.base.admins)
    ]
    return "; ".join(lines)


def _sudo(settings: Host) -> str:
    checks = [
        f"printf '{name} '; sudo -n -l -U {name} 2>/dev/null | grep -q 'NOPASSWD: ALL' && echo nopasswd || echo no"
        for name in (shlex.quote(admin.name) for admin in settings.base.admins)
    ]
    return "; ".join(checks)


def _kernel_parameters(settings: Host) -> str:
    return f"sysctl -- {' '.join(shlex.quote(name) for name in kernel_parameters(settings.base))}"


def _metrics(settings: Host) -> str:
    if not settings.base.monitoring_enabled:
        return ""
    options = f"/etc/default/{EXPORTER}"
    return f"""systemctl is-enabled {EXPORTER}.service
address=$(sed -n 's/.*--web.listen-address=\\([^" ]*\\).*/\\1/p' {options})
curl -fsS -m 10 "http://$address/metrics" | grep '^hostwright_'"""


EVIDENCE = {
    "packages": _packages,
    "removed-accounts": _removed_accounts,
    "authorized-keys": _keys,
    "sudo": _sudo,
    "sshd": "sshd -T",
    "update-settings": "apt-config dump APT::Periodic; apt-config dump Unattended-Upgrade",
    "update-timers": "systemctl is-enabled apt-daily.timer apt-daily-upgrade.timer",
    "update-package": "dpkg-query --show --showformat='${db:Status-Status}' unattended-upgrades",
    "time-sync-at-boot": "systemctl is-enabled systemd-timesyncd.service",
    "clock": "timedatectl show",
    "timezone": "readlink -f /etc/localtime",
    "time-servers": "systemd-analyze cat-config systemd/timesyncd.conf",
    "hostname": "cat /etc/hostname; hostname",
    "journal-settings": "systemd-analyze cat-config systemd/journald.conf",
    "journal-directory": "ls -d /var/log/journal/*/",
    "kernel-parameter-files": "systemd-analyze cat-config sysctl.d",
    "kernel-parameters": _kernel_parameters,
    "swap": "swapon --show=NAME,SIZE --bytes --noheadings",
    "metrics": _metrics,
    "failed-units": "systemctl --failed --plain --no-legend",
}


def _assignments(lines: list[str]) -> dict[str, str]:
    """Return KEY=VALUE or "KEY = VALUE" lines, comments left out; the last one counts, as for systemd and sysctl."""
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith(("#", ";")))
    return {key.strip().lstrip("-"): value.strip() for key, equals, value in pairs if equals}


def _sshd(machine: Machine) -> dict[str, set[str]]:
    options: dict[str, set[str]] = {}
    for line in machine.lines("sshd"):
        key, _, value = line.partition(" ")
        options.setdefault(key, set()).add(value)
    return options


def test_packages_are_installed(machine: Machine) -> None:
    installed = {tuple(line.split()) for line in machine.lines("packages")}
    assert installed == {("installed", name) for name in packages(machine.settings.base)}


def test_no_unit_has_failed(machine: Machine) -> None:
    assert machine.lines("failed-units") == []


def test_admins_log_in_with_their_keys_only(machine: Machine) -> None:
    machine.skip_unless("base_users_enabled")
    wanted = {f"{admin.name} {key}" for admin in machine.settings.base.admins for key in admin.keys}
    assert {line for line in machine.lines("authorized-keys") if " #" not in line} == wanted


def test_admins_have_the_declared_sudo(machine: Machine) -> None:
    machine.skip_unless("base_users_enabled")
    wanted = [f"{admin.name} {admin.sudo}" for admin in machine.settings.base.admins]
    assert machine.lines("sudo") == wanted


def test_removed_admins_are_gone(machine: Machine) -> None:
    machine.skip_unless("base_users_enabled")
    removed = set(machine.settings.base.removed_admins)
    assert removed & {line.split(":")[0] for line in machine.lines("removed-accounts")} == set()


def test_sshd_takes_keys_and_no_passwords(machine: Machine) -> None:
    machine.skip_unless("base_sshd_enabled")
    options = _sshd(machine)
    assert options["pubkeyauthentication"] == {"yes"}
    assert options["passwordauthentication"] == {"no"}
    assert options["kbdinteractiveauthentication"] == {"no"}
    assert options["permitemptypasswords"] == {"no"}


def test_sshd_lets_root_in_as_declared(machine: Machine) -> None:
    machine.skip_unless("base_sshd_enabled")
    # sshd -T prints the old name of prohibit-password.
    found = {value.replace("without-password", "prohibit-password") for value in _sshd(machine)["permitrootlogin"]}
    assert found == {machine.settings.base.ssh_permit_root}


def test_sshd_listens_on_the_declared_ports(machine: Machine) -> None:
    machine.skip_unless("base_sshd_enabled")
    assert {int(port) for port in _sshd(machine)["port"]} == set(machine.settings.base.ssh_ports)


def test_sshd_offers_no_weak_algorithm(machine: Machine) -> None:
    machine.skip_unless("base_sshd_enabled")
    options = _sshd(machine)
    offered = {name for key in ("ciphers", "macs", "kexalgorithms") for value in options[key] for name in value.split(",")}
    weak = ("cbc", "3des", "arcfour", "md5", "hmac-sha1", "group1-", "group14-sha1", "exchange-sha1")
    assert sorted(name for name in offered if any(part in name for part in weak)) == []


def test_security_updates_install_themselves(machine: Machine) -> None:
    machine.skip_unless("base_unattended_upgrades_enabled")
    assert machine.text("update-package").strip() == "installed"
    assert machine.lines("update-timers") == ["enabled", "enabled"]
    settings = machine.text("update-settings")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in settings
    assert 'APT::Periodic::Update-Package-Lists "1";' in settings


def test_security_updates_hold_back_what_is_declared(machine: Machine) -> None:
    machine.skip_unless("base_unattended_upgrades_enabled")
    held = [line for line in machine.lines("update-settings") if "Package-Blacklist" in line]
    for package in machine.settings.base.unattended_upgrades_hold:
        assert any(package in line for line in held), f"{package} is not in Unattended-Upgrade::Package-Blacklist"


def test_security_updates_reboot_only_when_declared(machine: Machine) -> None:
    machine.skip_unless("base_unattended_upgrades_enabled")
    wanted = "true" if machine.settings.base.unattended_upgrades_reboot else "false"
    assert f'Unattended-Upgrade::Automatic-Reboot "{wanted}";' in machine.text("update-settings")


def test_time_sync_is_enabled(machine: Machine) -> None:
    machine.skip_unless("base_time_sync_enabled")
    assert machine.text("time-sync-at-boot").strip() == "enabled"
    settings = _assignments(machine.lines("time-servers"))
    if machine.settings.base.time_servers:
        assert settings.get("NTP", "").split() == list(machine.settings.base.time_servers)


def test_clock_is_synchronised(machine: Machine) -> None:
    machine.skip_unless("base_time_sync_enabled")
    machine.skip_in_container("its clock is kept by the machine outside")
    assert _assignments(machine.lines("clock"))["NTPSynchronized"] == "yes"


def test_timezone_is_the_declared_one(machine: Machine) -> None:
    machine.skip_unless("base_timezone_enabled")
    found = machine.text("timezone").strip().removeprefix("/usr/share/zoneinfo/")
    utc = {"Etc/UTC", "UTC", "Etc/UCT", "Etc/Zulu"}  # links to one another
    assert found == machine.settings.base.timezone or {found, machine.settings.base.timezone} <= utc


def test_hostname_is_the_declared_one(machine: Machine) -> None:
    machine.skip_unless("base_hostname_enabled")
    assert machine.lines("hostname") == [machine.settings.hostname] * 2


def test_journal_is_kept_within_its_limits(machine: Machine) -> None:
    machine.skip_unless("base_journald_enabled")
    settings = _assignments(machine.lines("journal-settings"))
    assert settings.get("SystemMaxUse") == machine.settings.base.journald_max_use
    assert settings.get("MaxRetentionSec") == machine.settings.base.journald_max_retention
    assert machine.lines("journal-directory"), "the journal is kept in memory only and lost at every reboot"


def test_kernel_parameters_are_written_for_the_next_boot(machine: Machine) -> None:
    machine.skip_unless("base_sysctl_enabled")
    written = _assignments(machine.lines("kernel-parameter-files"))
    found = {key.replace("/", "."): value for key, value in written.items()}
    for key, value in kernel_parameters(machine.settings.base).items():
        assert found.get(key.replace("/", ".")) == value, key


def test_kernel_parameters_are_live(machine: Machine) -> None:
    machine.skip_unless("base_sysctl_enabled")
    machine.skip_in_container("kernel parameters belong to the machine outside")
    parameters = kernel_parameters(machine.settings.base)
    live = {key: " ".join(value.split()) for key, value in _assignments(machine.lines("kernel-parameters")).items()}
    wanted = {key.replace("/", "."): " ".join(value.split()) for key, value in parameters.items()}
    assert live == wanted


def test_swap_is_the_declared_size(machine: Machine) -> None:
    machine.skip_unless("base_swap_enabled")
    machine.skip_unless("base_swap_size_mb")
    machine.skip_in_container("swap belongs to the machine outside")
    sizes = [int(line.split()[-1]) for line in machine.lines("swap")]
    # The kernel keeps the first page of a swap file for itself.
    assert any(abs(size - machine.settings.base.swap_size_mb * 2**20) <= 65536 for size in sizes), sizes


def test_monitoring_can_read_what_the_host_is(machine: Machine) -> None:
    machine.skip_unless("base_monitoring_enabled")
    at_boot, *metrics = machine.lines("metrics")
    assert at_boot == "enabled"
    assert any(line.startswith("hostwright_host_info{") and f'host="{machine.target.name}"' in line for line in metrics)
    exposed = {(int(port), proto) for port, proto in re.findall(r'hostwright_exposed_port\{port="(\d+)",proto="(\w+)"', "\n".join(metrics))}  # fmt: skip
    assert exposed == {(port.port, port.proto) for port in machine.settings.exposure}
