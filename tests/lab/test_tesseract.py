"""Tesseract on a real host: what it reads, and what happens when it does not."""

import pytest


def deploy(*languages: str, user: str = "nobody") -> str:
    return f"from operations import tesseract\ntesseract.languages({list(languages)!r}, user={user!r}, name='Tesseract')\n"


def reads(host, language: str) -> str:
    return host.run(
        f"runuser -u nobody -- tesseract /usr/local/share/hostwright/tesseract.png stdout -l {language} --psm 7 2>/dev/null"
    ).stdout.strip()


@pytest.mark.soak
def test_set_noop_update_heal(host, provision):
    assert "not a language" in provision(host, deploy("English")).stderr
    assert host.run("command -v tesseract", check=False).returncode != 0
    run = provision(host, deploy("eng"))
    assert (run.ok, run.changed) == (True, ["Tesseract"]), run
    assert reads(host, "eng") == "4711 0815 2026"
    assert provision(host, deploy("eng")).changed == []
    assert provision(host, deploy("eng"), dry=True).changed == []

    assert provision(host, deploy("eng", "deu", "ell")).changed == ["Tesseract"]
    assert reads(host, "deu") == reads(host, "ell") == "4711 0815 2026"
    host.run("rm /usr/share/tesseract-ocr/*/tessdata/deu.traineddata")
    assert provision(host, deploy("eng", "deu", "ell")).changed == ["Tesseract"]
    assert reads(host, "deu") == "4711 0815 2026"
    assert provision(host, deploy("eng", "deu", "ell")).changed == []


@pytest.mark.soak
def test_a_user_who_cannot_read_is_found(host, provision):
    host.run("chmod 700 /usr/share/tesseract-ocr")
    bad = provision(host, deploy("eng", user="daemon"))
    host.run("chmod 755 /usr/share/tesseract-ocr")
    assert (bad.ok, bad.failed) == (False, ["Tesseract"])
    assert 'where "4711 0815 2026" is written' in bad.stderr
    assert provision(host, deploy("eng", user="daemon")).changed == ["Tesseract"]
