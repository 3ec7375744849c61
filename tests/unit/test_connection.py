"""How config.py sets up each SSH connection."""

import runpy
import socket
from pathlib import Path

import paramiko

CONFIG = Path(__file__).parents[2] / "config.py"


def test_a_connection_sends_each_message_at_once_and_ends_with_its_host() -> None:
    tune = runpy.run_path(str(CONFIG))["_tune"]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname()) as connection:
            transport = paramiko.Transport(connection)
            tune(lambda transport, event=None, timeout=None: None)(transport, timeout=1)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, count, interval = (
                connection.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPCNT, socket.TCP_KEEPINTVL)
            )
            assert idle + count * interval == 60
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_a_pipe_is_left_alone() -> None:
    tune = runpy.run_path(str(CONFIG))["_tune"]
    near, far = socket.socketpair()
    with near, far:
        started = []
        tune(lambda transport: started.append(transport))(paramiko.Transport(near))
        assert len(started) == 1
