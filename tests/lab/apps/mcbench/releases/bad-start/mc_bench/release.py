"""Bad: every component ends before it does anything."""

VERSION = "bad-start"
HAS_PRIORITY = True


def starting() -> None:
    raise SystemExit("this release cannot start: no module named mc_bench.missing")


def healthy() -> bool:
    return True
