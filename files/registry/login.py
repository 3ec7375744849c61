"""Log in to a registry, or out of it, and have its CA trusted as long as it is wanted."""

import contextlib
import sys


def _fail(text: str) -> None:
    sys.exit("registry.login: " + text)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: F821
    beside = path + ".hostwright~"
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(beside, 0o644)  # noqa: F821
    os.replace(beside, path)  # noqa: F821


def _set_ca(path: str, text: str) -> None:
    if text:
        _write(path, text)
        return
    if os.path.exists(path):  # noqa: F821
        os.unlink(path)  # noqa: F821
    with contextlib.suppress(OSError):  # it holds something of somebody else's, or is not there
        os.rmdir(os.path.dirname(path))  # noqa: F821


def _close() -> None:
    """Keep what Docker wrote from everybody else."""
    if os.path.exists(CONFIGURATION):  # noqa: F821
        os.chmod(CONFIGURATION, 0o600)  # noqa: F821
        os.chmod(os.path.dirname(CONFIGURATION), 0o700)  # noqa: F821


def main(values: dict) -> None:
    os.umask(0o077)  # noqa: F821
    registry = values["registry"]
    _set_ca(values["ca_file"], values["ca"])
    _close()
    if not values["username"]:
        subprocess.run(["docker", "logout", server(registry)], capture_output=True, check=False)  # noqa: F821
        if is_registered(registry):  # noqa: F821
            _fail(f"docker logout {registry} left the account in {CONFIGURATION}")  # noqa: F821
        return
    if values["is_stored"]:
        return
    done = subprocess.run(  # noqa: F821
        ["docker", "login", "--username", values["username"], "--password-stdin", server(registry)],  # noqa: F821
        input=values["password"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    _close()
    if done.returncode:
        said = done.stderr.replace(values["password"], "*MASKED*").strip().splitlines()
        hint = ""
        if "x509" in done.stderr or "certificate" in done.stderr:
            hint = "; a private CA is given as ca"
        _fail(f"{registry} does not take the account of {values['username']}: {' '.join(said[-2:])}{hint}")
