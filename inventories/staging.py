"""Staging: what production runs, one host of it, with certificates that cost no rate limit. A sample."""

gateway = [
    ("gateway-staging", {"ssh_hostname": "192.0.2.21", "gateway_domain": "gateway.staging.example.org"}),
]

_infra = (
    "mcbench-staging",
    {
        "ssh_hostname": "192.0.2.51",
        "mcbench_internal_address": "10.0.1.51",
        "mcbench_api_domain": "api.staging.example.org",
        "mcbench_admin_domain": "mcbench-admin.staging.example.org",
        "mcbench_flower_domain": "flower.staging.example.org",
        "mcbench_cors_allowed_origin": "https://staging.example.org",
    },
)
_server = ("mcbench-server-staging", {"ssh_hostname": "192.0.2.52"})

mcbench = [_infra, _server]
mcbench_infra = [_infra]
mcbench_api = [_infra]
mcbench_admin = [_infra]
mcbench_worker = [_infra]
mcbench_admin_worker = [_infra]
mcbench_render = [_infra]
mcbench_server = [_server]

# All of cricksy on one host: nothing of it leaves loopback.
_cricksy = ("cricksy-staging", {"ssh_hostname": "192.0.2.75", "cricksy_domain": "cricksy.staging.example.org"})

cricksy = [_cricksy]
cricksy_infra = [_cricksy]
cricksy_api = [_cricksy]
cricksy_worker = [_cricksy]

liap = [
    (
        "liap-staging",
        {"ssh_hostname": "192.0.2.82", "liap_domain": "liap.staging.example.org", "liap_environment": "staging"},
    ),
]
