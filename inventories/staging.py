"""Staging: what production runs, one host of it, with certificates that cost no rate limit. A sample."""

gateway = [
    ("gateway-staging", {"ssh_hostname": "192.0.2.21", "gateway_domain": "gateway.staging.example.org"}),
]
