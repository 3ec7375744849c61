"""See that containers outlive the restart that comes next."""


def main(values: dict) -> None:
    keep_containers(values["daemon_json"])  # noqa: F821
