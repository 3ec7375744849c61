"""Hosts that run CI jobs. A sample."""

ci_runner = [
    ("runner-1", {"ssh_hostname": "192.0.2.31"}),
]
