"""See that containers outlive the restart that comes next, and requests to them."""


def main(values: dict) -> None:
    keep_containers(values["daemon_json"])  # noqa: F821
    lead_past_the_proxies()  # noqa: F821
