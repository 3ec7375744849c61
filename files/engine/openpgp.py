"""Fingerprints of the keys in a file, without gpg, which a bare host does not have."""

import base64
import hashlib


def _binary(content: bytes) -> bytes:
    """Take the armour off: RFC 9580, 6.2."""
    if not content.lstrip().startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
        return content
    blocks = content.split(b"-----BEGIN PGP PUBLIC KEY BLOCK-----")[1:]
    binary = b""
    for block in blocks:
        lines = block.split(b"-----END")[0].splitlines()
        body = lines[lines.index(b"", 1) + 1 :] if b"" in lines[1:] else lines
        binary += base64.b64decode(b"".join(line for line in body if not line.startswith(b"=")))
    return binary


def _packets(content: bytes):
    """Yield (tag, body) of each packet: RFC 9580, 4.2."""
    at = 0
    while at < len(content):
        head = content[at]
        if not head & 0x80:
            raise ValueError("not a key")
        if head & 0x40:
            tag, first = head & 0x3F, content[at + 1]
            if first < 192:
                size, at = first, at + 2
            elif first < 224:
                size, at = ((first - 192) << 8) + content[at + 2] + 192, at + 3
            elif first == 255:
                size, at = int.from_bytes(content[at + 2 : at + 6], "big"), at + 6
            else:
                raise ValueError("not a key")
        else:
            tag, width = head >> 2 & 0x0F, 1 << (head & 3)
            if width > 4:
                raise ValueError("not a key")
            size, at = int.from_bytes(content[at + 1 : at + 1 + width], "big"), at + 1 + width
        if at + size > len(content):
            raise ValueError("not a key")
        yield tag, content[at : at + size]
        at += size


def fingerprints(content: bytes) -> list:
    """Return the fingerprint of every primary key, which vouches for its subkeys; nothing when it is no file of keys."""
    found = []
    try:
        for tag, body in _packets(_binary(content)):
            if tag == 6 and body[:1] == b"\x04":
                found.append(hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper())
            elif tag == 6:
                found.append("of an unknown kind")
    except (ValueError, IndexError):
        return []
    return found
