"""The network of one slot: a bridge with IPv4 and IPv6, one network namespace per host, a way out for packages.

A host's namespace belongs to the lab and is handed to systemd-nspawn, so addresses are there before the host boots,
a cut link is one ``ip link set … down``, and every boot gets a fresh namespace: firewall rules and addresses of the
kernel do not outlive a power cycle, as on hardware.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab.state import ROOT, SLOTS, LabError, lock, run

CACHE_ADDRESS = "10.78.255.1"
_CACHE_BRIDGE = "hwlabc"


def bridge(slot: int) -> str:
    """Return the name of the slot's bridge."""
    return f"hwlab{slot}"


def gateway(slot: int) -> str:
    """Return the outer machine's IPv4 address in the slot."""
    return f"10.78.{slot}.1"


def address(slot: int, index: int) -> str:
    """Return a host's IPv4 address; index from 2 to 254."""
    return f"10.78.{slot}.{index}"


def address6(slot: int, index: int) -> str:
    """Return a host's IPv6 address, the index in decimal digits so that both addresses end alike."""
    return f"fd78:{slot}::{index}"


def namespace(slot: int, name: str) -> str:
    """Return the name of a host's network namespace (for ``ip netns exec``)."""
    return f"hw{slot}-{name}"


def _outer_link(slot: int, index: int) -> str:
    return f"hw{slot}-{index}"  # at most 15 characters, so by index and not by name


def _link_exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def _batch(lines: list[str], netns: str = "") -> None:
    run("ip", *(["-n", netns] if netns else []), "-batch", "-", input="\n".join(lines) + "\n")


def _outer_mtu() -> int:
    """Return the MTU of the default route's interface: larger packets of a host would be dropped on the way out."""
    words = run("ip", "-4", "route", "show", "default").split()
    if "dev" not in words:
        return 1500
    return min(1500, int(Path("/sys/class/net", words[words.index("dev") + 1], "mtu").read_text()))


def _remember_forwarding() -> None:
    """Switch IPv4 forwarding on; what it was before is kept for :func:`remove_shared`."""
    setting, memory = Path("/proc/sys/net/ipv4/ip_forward"), ROOT / "ip_forward"
    if not memory.exists():
        memory.write_text(setting.read_text())
    setting.write_text("1\n")
    # Each host's systemd takes a dozen; the usual 128 for all of root's end at about eight hosts. Only a limit: it stays.
    instances = Path("/proc/sys/fs/inotify/max_user_instances")
    if int(instances.read_text()) < 1024:
        instances.write_text("1024\n")


def create_cache_address() -> None:
    """Make the address of the package cache: one that this machine and its lab hosts reach, and nobody else."""
    with lock("network"):
        if not _link_exists(_CACHE_BRIDGE):
            _batch([f"link add {_CACHE_BRIDGE} type bridge", f"link set {_CACHE_BRIDGE} up",
                    f"address add {CACHE_ADDRESS}/32 dev {_CACHE_BRIDGE}"])  # fmt: skip


def create(slot: int) -> None:
    """Make the slot's bridge and its way out. Does nothing when they are there.

    Raises LabError when this machine has another use for the addresses.
    """
    with lock("network"):
        if _link_exists(bridge(slot)):
            return
        taken = run("ip", "-4", "route", "show", "root", f"10.78.{slot}.0/24").strip()
        if taken:
            raise LabError(f"slot {slot}: this machine uses its network already ({taken.splitlines()[0].strip()}): take another slot")
        _remember_forwarding()
        name = bridge(slot)
        _batch([
            f"link add {name} mtu {_outer_mtu()} type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
            f"link set {name} up",
            f"address add {gateway(slot)}/24 dev {name}",
            f"address add {address6(slot, 1)}/64 dev {name} nodad",
        ])  # fmt: skip
        run("nft", "-f", "-", input=f"""
table ip hwlab{slot} {{
    chain way_out {{
        type nat hook postrouting priority srcnat
        ip saddr 10.78.{slot}.0/24 ip daddr != 10.78.0.0/16 masquerade
    }}
}}
""")


def attach(slot: int, name: str, index: int) -> None:
    """Give a host a fresh network namespace with its addresses, its link up."""
    detach(slot, name, index)
    netns, outer = namespace(slot, name), _outer_link(slot, index)
    run("ip", "netns", "add", netns)
    mtu = Path("/sys/class/net", bridge(slot), "mtu").read_text().strip()
    # The same hardware address at every boot: neighbours would go on sending to the old one for half a minute.
    mac = f"02:78:00:00:{slot:02x}:{index:02x}"
    _batch([
        f"link add {outer} mtu {mtu} type veth peer name eth0 address {mac} mtu {mtu} netns {netns}",
        f"link set {outer} master {bridge(slot)} up",
    ])  # fmt: skip
    _batch([
        "link set lo up",
        "link set eth0 up",
        f"address add {address(slot, index)}/24 dev eth0",
        f"address add {address6(slot, index)}/64 dev eth0 nodad",
        f"route add default via {gateway(slot)}",
    ], netns)  # fmt: skip


def detach(slot: int, name: str, index: int) -> None:
    """Remove a host's link and namespace, where they exist."""
    outer, netns = _outer_link(slot, index), namespace(slot, name)
    # The link first: processes still inside keep a deleted namespace, and with it the name of the link, alive.
    if _link_exists(outer):
        run("ip", "link", "del", outer)
    if Path("/run/netns", netns).exists():
        run("ip", "netns", "del", netns)


def set_link(slot: int, index: int, *, up: bool) -> None:
    """Cut or mend a host's link at the outer end: the host itself sees its carrier go."""
    run("ip", "link", "set", _outer_link(slot, index), "up" if up else "down")


def remove(slot: int) -> list[str]:
    """Remove everything of a slot's network, also what a crashed run left; return what was removed."""
    removed = []
    for entry in sorted(Path("/run/netns").glob(f"hw{slot}-*")):
        run("ip", "netns", "del", entry.name)
        removed.append(f"network namespace {entry.name}")
    for entry in sorted(Path("/sys/class/net").glob(f"hw{slot}-*")):
        run("ip", "link", "del", entry.name, check=False)  # its namespace's end may have taken it already
        removed.append(f"link {entry.name}")
    if _link_exists(bridge(slot)):
        run("ip", "link", "del", bridge(slot))
        removed.append(f"bridge {bridge(slot)}")
    # The second is scan.py's, there only while a scan runs, or after one that was killed.
    for table in (f"ip hwlab{slot}", f"inet hwscan{slot}"):
        if f"table {table}" in run("nft", "list", "tables").splitlines():
            run("nft", "delete", "table", *table.split())
            removed.append(f"firewall table {table.split()[1]}")
    return removed


def in_use() -> list[int]:
    """Return the slots whose bridge exists."""
    return [slot for slot in SLOTS if _link_exists(bridge(slot))]


def remove_shared() -> list[str]:
    """Remove what all slots share, and set forwarding back; the caller holds the lock "network"."""
    removed = []
    if _link_exists(_CACHE_BRIDGE):
        run("ip", "link", "del", _CACHE_BRIDGE)
        removed.append(f"bridge {_CACHE_BRIDGE}")
    memory = ROOT / "ip_forward"
    if memory.exists():
        Path("/proc/sys/net/ipv4/ip_forward").write_text(memory.read_text())
        memory.unlink()
        removed.append("IPv4 forwarding (set back)")
    return removed
