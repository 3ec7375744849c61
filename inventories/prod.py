"""Production. A sample: replace names and addresses; secrets are references, their values stay outside git."""

gateway = [
    (
        "gateway-1",
        {
            "ssh_hostname": "192.0.2.11",
            "gateway_domain": "gateway.example.org",
            "monitoring_enabled": True,
            "monitoring_address": "10.0.0.11",
        },
    ),
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

# The mcbench fleet. A host may be in several groups; a server host should be in one alone.
_infra = ("mcbench-infra-1", {"ssh_hostname": "192.0.2.41", "mcbench_internal_address": "10.0.0.41"})
_api_1 = ("mcbench-api-1", {"ssh_hostname": "192.0.2.42"})
_api_2 = ("mcbench-api-2", {"ssh_hostname": "192.0.2.43"})
_admin = ("mcbench-admin-1", {"ssh_hostname": "192.0.2.44"})
_worker = ("mcbench-worker-1", {"ssh_hostname": "192.0.2.45"})
_render = ("mcbench-render-1", {"ssh_hostname": "192.0.2.46"})
_server_1 = ("mcbench-server-1", {"ssh_hostname": "192.0.2.47"})
_server_2 = ("mcbench-server-2", {"ssh_hostname": "192.0.2.48"})

mcbench = [_infra, _api_1, _api_2, _admin, _worker, _render, _server_1, _server_2]
mcbench_infra = [_infra]
mcbench_api = [_api_1, _api_2]
mcbench_admin = [_admin]
mcbench_worker = [_worker]
mcbench_admin_worker = [_admin]
mcbench_render = [_render]
mcbench_server = [_server_1, _server_2]
mcbench_scheduler = [_admin]

# cricksy: databases on a host of their own, reached with TLS; workers on others.
_cricksy_infra = ("cricksy-infra-1", {"ssh_hostname": "192.0.2.71", "cricksy_infra_address": "10.0.0.71"})
_cricksy_api = ("cricksy-api-1", {"ssh_hostname": "192.0.2.72"})
_cricksy_worker_1 = ("cricksy-worker-1", {"ssh_hostname": "192.0.2.73"})
_cricksy_worker_2 = ("cricksy-worker-2", {"ssh_hostname": "192.0.2.74"})

cricksy = [_cricksy_infra, _cricksy_api, _cricksy_worker_1, _cricksy_worker_2]
cricksy_infra = [_cricksy_infra]
cricksy_api = [_cricksy_api]
cricksy_worker = [_cricksy_worker_1, _cricksy_worker_2]

liap = [("liap-1", {"ssh_hostname": "192.0.2.83", "liap_domain": "liap.example.org"})]

# Watches the hosts above that have monitoring_enabled (docs/monitoring.md).
monitoring = [("watch-1", {"ssh_hostname": "192.0.2.81", "monitoring_address": "10.0.0.81"})]

# codeclashers: a server of its Kubernetes cluster, whose kubectl applies the manifests.
codeclashers = [("codeclashers-1", {"ssh_hostname": "192.0.2.61"})]
