"""The operator's own inventory, in the operator's own repository. A sample."""

codeclashers = [
    ("codeclashers-1", {"ssh_hostname": "192.0.2.61"}),
]
