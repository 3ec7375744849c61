"""Production. A sample: replace names and addresses; secrets are references, their values stay outside git."""

gateway = [
    ("gateway-1", {"ssh_hostname": "192.0.2.11", "gateway_domain": "gateway.example.org"}),
    (
        "gateway-2",
        {
            "ssh_hostname": "192.0.2.12",
            "gateway_domain": "gateway.example.org",
            "gateway_extra_domains": ["models.example.org"],
        },
    ),
    (
        "gateway-eu-1",
        {
            "ssh_hostname": "2001:db8::11",
            "gateway_domain": "gateway-eu.example.org",
            # a host in a network of its own: operators reach ssh and /admin through it only
            "base_ssh_sources": ["2001:db8:1::/48"],
            "gateway_admin_networks": ["2001:db8:1::/48"],
        },
    ),
]
