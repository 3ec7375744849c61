"""Hosts of inventories/staging.py."""

certificate_staging = True

mcbench_internal_networks = ["10.0.1.0/24"]
mcbench_postgres_host = "10.0.1.51"
mcbench_redis_host = "10.0.1.51"
mcbench_object_store_dsn = "10.0.1.51:9000"
