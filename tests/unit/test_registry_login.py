"""How a stored account is read and judged, against a registry of a few lines."""

import base64
import hashlib
import json
import runpy
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from facts.registry import Login, ca_file
from operations.registry import is_stored
from settings.secret import Secret

PROGRAM = Path(__file__).parents[2] / "files/registry/accounts.py"


@pytest.fixture
def accounts(tmp_path):
    loaded = runpy.run_path(str(PROGRAM))
    loaded["read"].__globals__["CONFIGURATION"] = str(tmp_path / "config.json")
    return loaded


def write(accounts, content):
    path = Path(accounts["read"].__globals__["CONFIGURATION"])
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def seal(text, salt="s"):
    return hashlib.pbkdf2_hmac("sha256", text.encode(), salt.encode(), 100_000).hex()


def test_account_is_told_from_another_one():
    state = Login(sealed=seal("ann:right"), salt="s", verdict="accepted")
    assert is_stored(state, "ann", Secret("right"))
    assert not is_stored(state, "ann", Secret("wrong"))
    assert not is_stored(state, "bob", Secret("right"))
    assert not is_stored(Login(), "ann", Secret("right"))


@pytest.mark.parametrize(("verdict", "stored"), [("accepted", True), ("unknown", True), ("refused", False)])
def test_account_that_the_registry_refuses_is_none(verdict, stored):
    assert is_stored(Login(sealed=seal("a:b"), salt="s", verdict=verdict), "a", Secret("b")) is stored


def test_stored_account_is_read(accounts):
    assert accounts["account"]("r.example.org") == ""
    write(accounts, {"auths": {"r.example.org": {"auth": base64.b64encode(b"ann:p:w").decode()}}})
    assert accounts["account"]("r.example.org") == "ann:p:w"
    assert accounts["is_registered"]("r.example.org")
    assert accounts["account"]("other.example.org") == ""
    assert accounts["seal"]("ann:p:w", "s") == seal("ann:p:w")


def test_docker_hub_has_a_name_of_its_own(accounts):
    write(accounts, {"auths": {"https://index.docker.io/v1/": {"auth": base64.b64encode(b"a:b").decode()}}})
    assert accounts["account"]("docker.io") == "a:b"


@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"auths": {"r.example.org": {"auth": "?"}}}'])
def test_file_that_is_none_holds_no_account(accounts, content):
    write(accounts, content)
    assert accounts["account"]("r.example.org") == ""


def test_helper_is_asked(accounts, tmp_path, monkeypatch):
    helper = tmp_path / "docker-credential-lab"
    helper.write_text('#!/bin/sh\nread name\necho "{\\"Username\\": \\"ann\\", \\"Secret\\": \\"of $name\\"}"\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    write(accounts, {"credsStore": "lab", "auths": {"r.example.org": {}}})
    assert accounts["account"]("r.example.org") == "ann:of r.example.org"


class Answers(BaseHTTPRequestHandler):
    """A registry that takes ann:right."""

    def do_GET(self):
        good = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"ann:right").decode()
        self.send_response(200 if good else 401)
        self.send_header("WWW-Authenticate", 'Basic realm="lab"')
        self.end_headers()

    def log_message(self, *words):
        pass


def test_registry_is_asked(accounts):
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # By plain HTTP: what TLS adds is shown in the lab.
    judge = accounts["verdict"]
    plain = judge.__globals__["_ask"]
    judge.__globals__["_ask"] = lambda opener, url, login: plain(opener, url.replace("https:", "http:"), login)
    name = f"127.0.0.1:{server.server_port}"
    assert judge(name, "ann:right") == "accepted"
    assert judge(name, "ann:wrong") == "refused"
    server.shutdown()
    server.server_close()
    assert judge(name, "ann:right") == "unknown"


def test_ca_stands_where_the_engine_looks():
    assert ca_file("r.example.org:5000") == "/etc/docker/certs.d/r.example.org:5000/ca.crt"
