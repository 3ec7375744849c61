"""The sources of apt that lead to Docker's packages, in either form, wherever they stand."""

import os
import re

LIST = "/etc/apt/sources.list"
PARTS = "/etc/apt/sources.list.d"
OWN = PARTS + "/docker.sources"
# Docker's own addresses, old ones too, and the way its mirrors are called.
_DOCKER = re.compile(
    r"https?://[^\s\]]*(?:download\.docker\.com|dockerproject\.org|get\.docker\.com|/docker-ce(?:/|\b))"
)


def files():
    """Return the files that apt reads."""
    names = sorted(os.listdir(PARTS)) if os.path.isdir(PARTS) else []
    found = [LIST, *(PARTS + "/" + name for name in names if name.endswith((".list", ".sources")))]
    return [path for path in found if os.path.isfile(path)]


def _is_docker(uri: str, repository: str) -> bool:
    return bool(_DOCKER.match(uri)) or (bool(repository) and (uri + "/").startswith(repository + "/"))


def without_docker(path: str, text: str, repository: str) -> str:
    """Return the file's text without its entries for Docker's packages; the same text when it has none."""
    if path == OWN:
        return ""  # whatever repository it was made for
    if path.endswith(".sources"):
        return _stanzas(text, repository)
    kept = []
    for line in text.splitlines(keepends=True):
        match = re.match(r"\s*deb(?:-src)?\s+(?:\[[^\]]*\]\s*)?(\S+)", line)
        if not (match and _is_docker(match[1], repository)):
            kept.append(line)
    return "".join(kept)


def _stanzas(text: str, repository: str) -> str:
    kept = []
    for stanza in re.split(r"(?<=\n)(?:[ \t]*\n)+", text):
        uris = re.search(r"^URIs:(.*(?:\n[ \t].*)*)", stanza, re.M | re.I)
        listed = uris[1].split() if uris else []
        others = [uri for uri in listed if not _is_docker(uri, repository)]
        if listed == others:
            kept.append(stanza)
        elif others:
            kept.append(stanza.replace(uris[0], "URIs: " + " ".join(others)))
    return (
        text if "".join(kept).split() == text.split() else "\n".join(part.strip("\n") + "\n" for part in kept)
    )


def is_empty(text: str) -> bool:
    """Whether nothing but comments is left."""
    return not [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def with_docker(repository: str):
    """Return the files that lead to Docker's packages."""
    found = []
    for path in files():
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
        if without_docker(path, text, repository) != text:
            found.append(path)
    return found
