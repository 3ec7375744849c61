"""How config.py sets up each SSH connection.

It imports pyinfra's command line, which changes sockets, TLS and threads of its process for good: what else runs in it, such
as the tests of boto3 or pytest-xdist itself, may then break. So each check has a process of its own.
"""

import runpy
import socket
import subprocess
import sys
from pathlib import Path

import paramiko

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config.py"


def alone(check: str) -> None:
    """Run a function of this module in a process of its own."""
    command = [sys.executable, "-B", "-c", f"from tests.unit import test_connection; test_connection.{check}()"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr


def test_a_connection_sends_each_message_at_once_and_ends_with_its_host() -> None:
    alone("a_connection")


def a_connection() -> None:
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
    alone("a_pipe")


def a_pipe() -> None:
    tune = runpy.run_path(str(CONFIG))["_tune"]
    near, far = socket.socketpair()
    with near, far:
        started = []
        tune(lambda transport: started.append(transport))(paramiko.Transport(near))
        assert len(started) == 1
