"""Hosts that run CI jobs. A sample."""

ci_runner = [
    ("runner-1", {"ssh_hostname": "192.0.2.31", "ci_runner_count": 2}),
    ("runner-arm-1", {"ssh_hostname": "192.0.2.32"}),
    ("runner-render-1", {"ssh_hostname": "192.0.2.33", "ci_runner_labels": ["render"]}),
]
