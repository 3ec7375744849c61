"""What a host lets in, seen from outside: every TCP port and chosen UDP ports, over IPv4 and IPv6, in seconds.

The scan runs in the stranger's network namespace and sends its own SYNs, because 65535 connections take minutes where
a firewall drops without an answer. Two passes, so that one lost packet hides nothing.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from tests.lab.hosts import LabHost
from tests.lab.state import REPOSITORY, run

PORTS = range(1, 65536)
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_GRACE = 1.0  # seconds without an answer after the last SYN; the hosts are on one bridge
_SOURCE_PORT = 61000  # above Linux's ephemeral range, so that no connection of the stranger's own is mixed in


@dataclass(frozen=True)
class Scan:
    """The ports of one address.

    + open: TCP ports that accept connections
    + refused: TCP ports that the firewall lets through and nobody listens on
    + udp: of the UDP ports asked, those that are let through (they answered, or said that nobody listens)
    """

    open: frozenset[int]
    refused: frozenset[int]
    udp: frozenset[int]

    @property
    def reached(self) -> frozenset[int]:
        """All TCP ports that the firewall lets through."""
        return self.open | self.refused


def scan(stranger: LabHost, host: LabHost, udp: Iterable[int] = ()) -> dict[int, Scan]:
    """Scan a host from the stranger; return the result by address family (4 and 6)."""
    asked = [str(port) for port in udp]
    with _untracked(stranger):
        return _scan(stranger, host, asked)


@contextmanager
def _untracked(stranger: LabHost) -> Iterator[None]:
    """Keep the scan out of the outer machine's connection table.

    Where bridged packets pass its netfilter (br_netfilter is loaded), every SYN would be an entry for two minutes, and
    a few scans would fill the table, which then drops packets of everybody.
    """
    table = f"hwscan{stranger.plan.slot}"
    ends = [f"{family} {way} {address} tcp {way[0]}port {_SOURCE_PORT} notrack"
            for family, address in (("ip", stranger.address), ("ip6", stranger.address6))
            for way in ("saddr", "daddr")]  # fmt: skip
    chain = "type filter hook prerouting priority raw\n" + "\n".join(ends)
    run("nft", "-f", "-", input=f"table inet {table} {{\n chain untracked {{\n{chain}\n }}\n}}\n")
    try:
        yield
    finally:
        run("nft", "delete", "table", "inet", table)


def _scan(stranger: LabHost, host: LabHost, asked: list[str]) -> dict[int, Scan]:
    running = {
        family: subprocess.Popen(
            ["ip", "netns", "exec", stranger.netns, sys.executable, "-m", "tests.lab.scan", address, *asked],
            cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        )
        for family, address in ((4, host.address), (6, host.address6))
    }  # fmt: skip
    results = {}
    for family, process in running.items():
        answer, _ = process.communicate(timeout=120)
        if process.returncode != 0:
            raise RuntimeError(f"scan of {host.name} over IPv{family}: exit status {process.returncode}")
        results[family] = Scan(**{key: frozenset(ports) for key, ports in json.loads(answer).items()})
    return results


def _sum(data: bytes) -> int:
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def _syn(pseudo_header_sum: int, port: int) -> bytes:
    header = struct.pack("!HHIIBBHHH", _SOURCE_PORT, port, 1, 0, 5 << 4, _SYN, 64240, 0, 0)
    total = pseudo_header_sum + _sum(header)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack("!H", ~total & 0xFFFF) + header[18:]


class _TcpScan:
    def __init__(self, address: str) -> None:
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(self.family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            source = probe.getsockname()[0]
        packed = [socket.inet_pton(self.family, end) for end in (source, address)]
        self.target = packed[1]
        self.pseudo = sum(map(_sum, packed)) + socket.IPPROTO_TCP + 20
        self.address = address
        self.raw = socket.socket(self.family, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self.raw.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
        self.raw.setblocking(False)
        self.open: set[int] = set()
        self.refused: set[int] = set()

    def run(self) -> None:
        for _ in range(2):
            for port in PORTS:
                self._send(port)
                if port % 128 == 0:
                    self._receive(0)
            quiet_since = monotonic()
            while monotonic() - quiet_since < _GRACE:
                if self._receive(0.1):
                    quiet_since = monotonic()

    def _send(self, port: int) -> None:
        packet = _syn(self.pseudo, port)
        while True:
            try:
                self.raw.sendto(packet, (self.address, 0))
                return
            except (BlockingIOError, OSError) as error:
                if not isinstance(error, BlockingIOError) and error.errno != 105:  # ENOBUFS
                    raise
                select.select([self.raw], [], [], 0.01)
                self._receive(0)

    def _receive(self, seconds: float) -> bool:
        heard = False
        while select.select([self.raw], [], [], 0 if heard else seconds)[0]:
            data, sender = self.raw.recvfrom(256)
            if self.family == socket.AF_INET:
                data = data[(data[0] & 15) * 4 :]
            source, destination, _, _, _, flags = struct.unpack("!HHIIBB", data[:14])
            if destination != _SOURCE_PORT or socket.inet_pton(self.family, sender[0]) != self.target:
                continue
            heard = True
            if flags & (_SYN | _ACK) == _SYN | _ACK:
                self.open.add(source)
            elif flags & _RST:
                self.refused.add(source)
        return heard


def _udp_reached(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(_GRACE)
        probe.connect((address, port))
        try:
            probe.send(b"hostwright scan\n")
            probe.recv(64)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
        return True


def main(address: str, udp: list[int]) -> None:
    """Scan one address from here and print the result as JSON."""
    tcp = _TcpScan(address)
    tcp.run()
    reached = [port for port in udp if _udp_reached(address, port)]
    found = {"open": sorted(tcp.open), "refused": sorted(tcp.refused - tcp.open), "udp": reached}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], [int(port) for port in sys.argv[2:]])
