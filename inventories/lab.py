"""The demo and test topology: real Debian hosts on this machine (``make lab-up``; docs/lab.md).

pyinfra reads the groups below; the lab boots the same hosts, and ``_stranger`` too, which no run ever touches.
"""

from tests.lab.topology import declare

gateway = [
    declare("web1", 11, "bookworm", gateway_domain="gateway.web1.example.test"),
    declare("web2", 12, "trixie", gateway_domain="gateway.web2.example.test"),
    declare("web3", 13, "bookworm", gateway_domain="gateway.web3.example.test"),
]

# Provisioned by nothing, trusted by nothing: exposure is scanned and load is sent from here.
_stranger = declare("stranger", 10, "bookworm")
