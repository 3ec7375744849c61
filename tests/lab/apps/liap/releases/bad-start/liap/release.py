"""Bad: ends before it listens."""

VERSION = "bad-start"


def starting() -> None:
    raise SystemExit("this release cannot start: no module named liap.missing")


def healthy() -> bool:
    return True
