"""Accounts at the lab's registry, read back with docker and from Docker's own file."""

from __future__ import annotations

import base64
import json

import pytest

from tests.lab import canary

HEAD = "from operations import registry\nfrom settings.secret import Secret\n"
CONFIGURATION = "/root/.docker/config.json"


@pytest.fixture(scope="module")
def registry(lab):
    here = lab.registry()
    yield here
    here.set_password(here.username, here.password)


@pytest.fixture(scope="module")
def host(lab, registry):
    fresh = lab.host("t-registry-login", layer="docker")
    yield fresh
    lab.destroy(fresh)


def login(registry, password: str, username: str = "", name: str = "", ca: str | None = None) -> str:
    arguments = (name or registry.name, username or registry.username)
    return (
        f"{HEAD}registry.login({arguments[0]!r}, {arguments[1]!r}, Secret({password!r}), "
        f"ca={registry.ca if ca is None else ca!r}, name='Log in')\n"
    )


def stored(host, registry) -> str:
    found = json.loads(host.read(CONFIGURATION)).get("auths", {}).get(registry.name, {}).get("auth", "")
    return base64.b64decode(found).decode()


def pull(host, registry):
    return host.run(f"docker pull -q {registry.image('busybox')}", check=False)


def test_set_no_op_rotate_heal_unset(host, registry, provision):
    assert "unknown authority" in pull(host, registry).stderr
    run = provision(host, login(registry, registry.password))
    assert run.ok, run
    assert run.changed == ["Log in"]
    assert pull(host, registry).returncode == 0
    assert host.run(f"stat -c '%a %U' /root/.docker {CONFIGURATION}").stdout == "700 root\n600 root\n"
    assert provision(host, login(registry, registry.password)).changed == []

    # Rotated at the registry, and here.
    registry.set_password(registry.username, "second 'of' $them")
    assert "unauthorized" in pull(host, registry).stderr
    run = provision(host, login(registry, "second 'of' $them"))
    assert run.changed == ["Log in"]
    assert stored(host, registry) == f"{registry.username}:second 'of' $them"
    assert pull(host, registry).returncode == 0

    # Rotated at the registry alone: said at once and not by the next pull; what is stored stays.
    registry.set_password(registry.username, "third")
    run = provision(host, login(registry, "second 'of' $them"))
    assert run.failed == ["Log in"]
    assert f"{registry.name} does not take the account of {registry.username}" in run.stderr
    assert "second" not in run.stderr + run.stdout
    assert stored(host, registry) == f"{registry.username}:second 'of' $them"
    assert provision(host, login(registry, "third")).changed == ["Log in"]

    # By hand.
    host.run(f"chmod 0644 {CONFIGURATION}")
    assert provision(host, login(registry, "third")).changed == ["Log in"]
    assert host.run(f"stat -c %a {CONFIGURATION}").stdout == "600\n"
    host.run(f"rm /etc/docker/certs.d/{registry.name}/ca.crt")
    assert provision(host, login(registry, "third")).changed == ["Log in"]
    assert pull(host, registry).returncode == 0
    host.run(f"docker logout {registry.name}")
    assert provision(host, login(registry, "third")).changed == ["Log in"]
    host.run(f"echo nonsense > {CONFIGURATION}")
    assert provision(host, login(registry, "third")).failed == []

    # A registry that does not answer is no reason to fail a host that has its account.
    assert provision(host, login(registry, "third")).changed == []
    registry.stop()
    try:
        assert provision(host, login(registry, "third")).changed == []
    finally:
        registry.start()

    out = f"{HEAD}registry.logout({registry.name!r}, name='Log out')\n"
    assert provision(host, out).changed == ["Log out"]
    assert registry.name not in host.read(CONFIGURATION)
    assert not host.exists(f"/etc/docker/certs.d/{registry.name}")
    assert provision(host, out).changed == []
    registry.set_password(registry.username, registry.password)


def test_password_shows_nowhere_but_in_dockers_file(host, registry, provision):
    secrets = canary.new(["PASSWORD"])
    registry.set_password(registry.username, secrets["PASSWORD"])
    deploy = login(registry, "PLACEHOLDER").replace("Secret('PLACEHOLDER')", "Secret(__import__('os').environ['PASSWORD'])")
    with canary.sampled(host, secrets) as samples:
        run = provision(host, deploy, env=secrets, extra=["-vvv", "--debug"])
    assert run.changed == ["Log in"], run
    with canary.sampled(host, secrets) as noop_samples:
        again = provision(host, deploy, env=secrets, extra=["-vvv", "--debug"])
    assert again.changed == [], again
    assert canary.in_text(run.stdout + run.stderr + again.stdout + again.stderr, secrets) == []
    for seen in (samples, noop_samples):
        assert seen.count > 0
        assert (seen.arguments, seen.environments) == (set(), set())
    assert canary.files(host, secrets) == {CONFIGURATION: "600 root root"}
    assert canary.journal(host, secrets) == []
    registry.set_password(registry.username, registry.password)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "https://r.example.org"}, "registry must be a name such as 'registry.example.org:5000', got 'https://r"),
        ({"username": "a:b"}, "username must be one line without a colon, got 'a:b'"),
        ({"password": "a\nb"}, "password must be one line"),
        ({"ca": "nonsense"}, "ca must be the text of a certificate in PEM form"),
    ],
)
def test_bad_input_is_refused(host, registry, provision, arguments, said):
    run = provision(host, login(registry, **{"password": "p", **arguments}))
    assert not run.ok
    assert said in run.stderr


def test_unknown_authority_is_said_with_what_to_do(host, registry, provision):
    run = provision(host, login(registry, registry.password, ca=""))
    assert run.failed == ["Log in"]
    assert "a private CA is given as ca" in run.stderr
