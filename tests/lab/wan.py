"""A delayed link in front of a host's sshd: a TCP relay that holds everything for half a round trip each way.

For kernels without netem. Bandwidth and TCP's own slow start are those of the local network; what is measured is the
cost of round trips. The connection itself is held for one round trip, as its handshake would be.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.lab import hosts, network
from tests.lab.state import Process, slot_directory, wait_for

if TYPE_CHECKING:
    from tests.lab.hosts import LabHost

_CHUNK = 1 << 16


@dataclass
class DelayedLink:
    """A host's sshd as seen over a long line; a context manager that ends with the line's removal.

    + address, port: where to connect instead of to the host
    """

    host: LabHost
    round_trip_ms: float
    address: str
    port: int
    _process: Process

    @property
    def data(self) -> dict[str, Any]:
        """Connection data of the host in a pyinfra inventory, over this link."""
        return {**self.host.data, "ssh_hostname": self.address, "ssh_port": self.port}

    def close(self) -> None:
        """Remove the link."""
        self._process.stop()
        hosts.set_alias(self.host, self._alias, present=False)

    @property
    def _alias(self) -> str:
        return f"[{self.address}]:{self.port}"  # how ssh writes a host key's name for a port of its own

    def __enter__(self) -> DelayedLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def delayed(host: LabHost, round_trip_ms: float, port: int = 22) -> DelayedLink:
    """Return a link to a port of a host with the given round trip time, in milliseconds.

    Host keys are known under the link's address too, so that strict checking works over it.
    """
    slot = host.plan.slot
    address = network.gateway(slot)
    with socket.socket() as probe:
        probe.bind((address, 0))
        chosen = probe.getsockname()[1]
    process = Process(slot_directory(slot) / "processes" / f"wan-{chosen}.pid")
    process.start(
        sys.executable, "-m", "tests.lab.wan", address, str(chosen), host.address, str(port), str(round_trip_ms),
        log=slot_directory(slot) / "wan.log",
    )  # fmt: skip
    link = DelayedLink(host, round_trip_ms, address, chosen, process)
    hosts.set_alias(host, link._alias, present=True)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((address, chosen)) == 0

    wait_for(f"delayed link to {host.name}", listens, 10)
    return link


async def _hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Relay one direction; each chunk leaves ``seconds`` after it came, however many are under way."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=4096)

    async def receive() -> None:
        while True:
            try:
                data = await reader.read(_CHUNK)
            except ConnectionError:
                data = b""
            await under_way.put((loop.time() + seconds, data))
            if not data:
                return

    receiving = asyncio.ensure_future(receive())
    try:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        receiving.cancel()
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()


async def _relay(listen: tuple[str, int], target: tuple[str, int], round_trip: float) -> None:
    async def connected(near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.sleep(round_trip)
            far_reader, far_writer = await asyncio.open_connection(*target)
            for writer in (near_writer, far_writer):
                writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.gather(
                _hold(near_reader, far_writer, round_trip / 2), _hold(far_reader, near_writer, round_trip / 2)
            )
            far_writer.close()
        except OSError:
            pass  # the host is off or the link cut: the client sees a closed connection
        finally:
            near_writer.close()

    server = await asyncio.start_server(connected, *listen)
    await server.serve_forever()


if __name__ == "__main__":
    here, here_port, there, there_port, milliseconds = sys.argv[1:]
    asyncio.run(_relay((here, int(here_port)), (there, int(there_port)), float(milliseconds) / 1000))
