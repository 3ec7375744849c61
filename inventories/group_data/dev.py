"""Hosts of inventories/dev.py: nothing here is reached from outside, and what it holds can be made again."""

certificate_mode = "self-signed"
backup_enabled = False

mcbench_api_domain = "api.mcbench.test"
mcbench_admin_domain = "admin.mcbench.test"
mcbench_flower_domain = "flower.mcbench.test"
mcbench_cors_allowed_origin = "http://localhost:5173"
mcbench_log_level = "DEBUG"

# all on one small host, the games too
mcbench_allow_small = True
mcbench_server_shares_host = True
mcbench_jobs_internet = True
# a server worker of the guide's size would want more cores than such a host has
mcbench_limits = {
    "server-worker": {"cpus": 1, "memory_mb": 1024},
    "render-worker": {"cpus": 1, "memory_mb": 1024},
    "admin-worker": {"cpus": 1, "memory_mb": 1024},
    "worker": {"cpus": 1, "memory_mb": 1024},
    "postgres": {"cpus": 1, "memory_mb": 1024},
    "object": {"cpus": 1, "memory_mb": 1024},
}

cricksy_domain = "cricksy.test"
cricksy_flower_domain = "flower.cricksy.test"
cricksy_cors_origins = ["http://localhost:5173"]
cricksy_log_level = "DEBUG"
cricksy_s3_endpoint_url = "http://192.0.2.63:9000"
cricksy_s3_is_aws_like = False
cricksy_worker_allow_more_than_cores = True

liap_environment = "development"
liap_domain = "liap.test"
liap_archive_backend = "filesystem"
liap_log_level = "DEBUG"
liap_allow_small = True
liap_stacks = ["dev", "test"]
liap_stack_password = "env:LIAP_STACK_PASSWORD"
