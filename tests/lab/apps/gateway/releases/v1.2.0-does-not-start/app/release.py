"""Bad: the process ends before it listens."""

raise RuntimeError("release 1.2.0 cannot start")
