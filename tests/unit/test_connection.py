"""How config.py sets up each SSH connection."""

import runpy
import socket
from pathlib import Path

import paramiko

CONFIG = Path(__file__).parents[2] / "config.py"


def test_a_connection_sends_each_message_at_once() -> None:
    prompt = runpy.run_path(str(CONFIG))["_send_at_once"]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname()) as connection:
            transport = paramiko.Transport(connection)
            prompt(lambda transport, event=None, timeout=None: None)(transport, timeout=1)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_pipe_is_left_alone() -> None:
    prompt = runpy.run_path(str(CONFIG))["_send_at_once"]
    near, far = socket.socketpair()
    with near, far:
        started = []
        prompt(lambda transport: started.append(transport))(paramiko.Transport(near))
        assert len(started) == 1
