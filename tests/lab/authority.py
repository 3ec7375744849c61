"""A certificate authority of a test: what operators have of their own for names and addresses that no public one signs."""

from __future__ import annotations

from pathlib import Path

from tests.lab.state import run

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """Made in ``directory``; ``certificate`` is what its clients need (PEM)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        run("openssl", "req", "-x509", *_KEY, "-days", "30", "-subj", "/CN=Hostwright lab authority",
            "-addext", "keyUsage=critical,keyCertSign", "-keyout", self._path("ca.key"), "-out", self._path("ca.pem"))  # fmt: skip
        self.certificate = self._path("ca.pem").read_text()

    def issue(self, *names: str) -> tuple[str, str]:
        """Return certificate and key (PEM) for names and addresses."""
        alternatives = ",".join(f"{'IP' if name[-1].isdigit() else 'DNS'}:{name}" for name in names)
        self._path("extensions").write_text(f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth\n")
        run("openssl", "req", *_KEY, "-subj", f"/CN={names[0]}", "-keyout", self._path("key"), "-out", self._path("csr"))
        run("openssl", "x509", "-req", "-in", self._path("csr"), "-CA", self._path("ca.pem"), "-CAkey", self._path("ca.key"),
            "-CAcreateserial", "-days", "30", "-extfile", self._path("extensions"), "-out", self._path("crt"))  # fmt: skip
        return self._path("crt").read_text(), self._path("key").read_text()

    def _path(self, name: str) -> Path:
        return self._directory / name
