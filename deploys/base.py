"""
What every host has, whatever runs on it. Each part can be turned off by its setting; docs/base.md tells why each is so.

Read top to bottom, it is the run book.
"""

from pyinfra.api import deploy

from deploys import current
from operations import (
    account,
    clock,
    dpkg,
    exposure,
    fileset,
    journald,
    kernel,
    node,
    sshd,
    swap,
    unit,
    updates,
)
from operations.fileset import File
from operations.template import render
from settings import Base, Host

EXPORTER = "prometheus-node-exporter"
TEXTFILES = "/var/lib/prometheus/node-exporter"

# Beside what Debian sets itself. Not among them: net.ipv4.ip_forward (Docker and k3s turn it on, and 0 cuts containers
# off) and a strict rp_filter (it drops what comes back to a container by another interface): 2 is the loose one.
KERNEL = {
    "fs.protected_fifos": "2",
    "fs.protected_hardlinks": "1",
    "fs.protected_regular": "2",
    "fs.protected_symlinks": "1",
    "fs.suid_dumpable": "0",
    "kernel.dmesg_restrict": "1",
    "kernel.kptr_restrict": "2",
    "kernel.sysrq": "0",
    "kernel.yama.ptrace_scope": "1",
    "net.core.bpf_jit_harden": "2",
    "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv4.conf.all.accept_source_route": "0",
    "net.ipv4.conf.all.rp_filter": "2",
    "net.ipv4.conf.all.secure_redirects": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.default.accept_redirects": "0",
    "net.ipv4.conf.default.accept_source_route": "0",
    "net.ipv4.conf.default.rp_filter": "2",
    "net.ipv4.conf.default.secure_redirects": "0",
    "net.ipv4.conf.default.send_redirects": "0",
    "net.ipv4.icmp_echo_ignore_broadcasts": "1",
    "net.ipv4.icmp_ignore_bogus_error_responses": "1",
    "net.ipv4.tcp_rfc1337": "1",
    "net.ipv4.tcp_syncookies": "1",
    "net.ipv6.conf.all.accept_redirects": "0",
    "net.ipv6.conf.all.accept_source_route": "0",
    "net.ipv6.conf.default.accept_redirects": "0",
    "net.ipv6.conf.default.accept_source_route": "0",
}


@deploy("Base")
def base() -> None:
    """Converge what every host has to its settings."""
    host = current()
    settings = host.base
    if settings.monitoring_enabled:
        _monitoring_files(host)
    dpkg.packages(packages(settings), name="Install packages")
    _identity(host)
    if settings.users_enabled:
        account.admins(settings.admins, removed=settings.removed_admins, name="Manage admins")
    if settings.sshd_enabled:
        # Before the firewall, which opens the ports that sshd listens on at that time.
        sshd.server(ports=settings.ssh_ports, permit_root=settings.ssh_permit_root, name="Harden sshd")
    if settings.firewall_enabled:
        exposure.firewall(host.exposure, name="Open the declared ports")
    if settings.unattended_upgrades_enabled:
        updates.unattended(
            hold=settings.unattended_upgrades_hold,
            reboot=settings.unattended_upgrades_reboot,
            reboot_at=settings.unattended_upgrades_reboot_at,
            name="Install security updates daily",
        )
    if settings.time_sync_enabled:
        clock.synchronised(servers=settings.time_servers, name="Keep the clock")
    if settings.journald_enabled:
        journald.limits(
            max_use=settings.journald_max_use,
            max_retention=settings.journald_max_retention,
            name="Limit the journal",
        )
    if settings.sysctl_enabled:
        kernel.parameters(kernel_parameters(settings), name="Set kernel parameters")
    if settings.swap_enabled:
        swap.file(size_mb=settings.swap_size_mb, name="Manage the swap file")
    if settings.monitoring_enabled:
        unit.unit(f"{EXPORTER}.service", inputs=[f"/etc/default/{EXPORTER}"], name="Run the node exporter")


def packages(settings: Base) -> list[str]:
    """Return the packages of the parts that are on."""
    parts = (
        (settings.packages_enabled, settings.packages),
        (settings.timezone_enabled, ("tzdata",)),
        (settings.users_enabled, ("sudo",)),
        (settings.firewall_enabled, ("ufw",)),
        (settings.unattended_upgrades_enabled, ("unattended-upgrades",)),
        (settings.time_sync_enabled, ("systemd-timesyncd",)),
        (settings.monitoring_enabled, (EXPORTER,)),
    )
    return sorted({name for enabled, names in parts if enabled for name in names})


def kernel_parameters(settings: Base) -> dict[str, str]:
    """Return the hardened defaults, with what the settings say on top."""
    swapping = {"vm.swappiness": "10"} if settings.swap_enabled and settings.swap_size_mb else {}
    return {**KERNEL, **swapping, **settings.sysctl}


def _identity(host: Host) -> None:
    hostname = host.hostname if host.base.hostname_enabled else ""
    timezone = host.base.timezone if host.base.timezone_enabled else ""
    if hostname or timezone:
        node.identity(hostname=hostname, timezone=timezone, name="Set name and time zone")


def _monitoring_files(host: Host) -> None:
    """Before the package, which starts the exporter at once: without this file on every address."""
    systems = sorted({system.prefix.rstrip("_") for system in host.systems})
    fileset.files(
        [
            File(
                f"/etc/default/{EXPORTER}",
                render("base/prometheus-node-exporter.j2", textfiles=TEXTFILES),
            ),
            File(
                f"{TEXTFILES}/hostwright.prom", render("base/hostwright.prom.j2", host=host, systems=systems)
            ),
        ],
        name="Upload facts of the node for monitoring",
    )
