"""The demo and test topology: real Debian hosts on this machine (``make lab-up``; docs/lab.md).

pyinfra reads the groups below; the lab boots the same hosts, and ``_stranger`` too, which no run ever touches.
"""

from tests.lab.topology import declare, repository

_release = {"gateway_repository": repository("gateway"), "gateway_version": "v1.1.0"}

gateway = [
    declare("web1", 11, "bookworm", gateway_domain="gateway.web1.example.test", **_release),
    declare("web2", 12, "trixie", gateway_domain="gateway.web2.example.test", **_release),
    declare("web3", 13, "bookworm", gateway_domain="gateway.web3.example.test", **_release),
]

# Provisioned by nothing, trusted by nothing: exposure is scanned and load is sent from here.
_stranger = declare("stranger", 10, "bookworm")
