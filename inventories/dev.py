"""Development: the whole of mcbench on one host, as a compose file would have it. A sample."""

_host = ("mcbench-dev", {"ssh_hostname": "192.0.2.61"})

mcbench = [_host]
mcbench_infra = [_host]
mcbench_api = [_host]
mcbench_admin = [_host]
mcbench_worker = [_host]
mcbench_admin_worker = [_host]
mcbench_render = [_host]
mcbench_server = [_host]

# The guide's development stack of cricksy on one host: its own databases, and an S3 server that is there already.
_cricksy = ("cricksy-dev", {"ssh_hostname": "192.0.2.62"})

cricksy = [_cricksy]
cricksy_infra = [_cricksy]
cricksy_api = [_cricksy]
cricksy_worker = [_cricksy]

# liap on one host, with the guide's development and test stacks beside it.
liap = [("liap-dev", {"ssh_hostname": "192.0.2.64"})]
