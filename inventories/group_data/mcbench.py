"""Hosts of the mcbench fleet, whatever their role."""

mcbench_registry = "registry.example.org/mc-bench"
mcbench_version = "1.4.0"
mcbench_minecraft_server_image = "registry.example.org/mc-bench/mc-bench-minecraft-server:1.4.0"
mcbench_minecraft_builder_image = "registry.example.org/mc-bench/mc-bench-builder-runner:1.4.0"
# The guide's image was taken off the public registries: any S3 server that keeps its objects in /data.
mcbench_object_image = "registry.example.org/mc-bench/s3-server:1.0.0"
mcbench_object_command = ["server", "/data"]

mcbench_postgres_password = "env:MCBENCH_POSTGRES_PASSWORD"
mcbench_postgres_backup_password = "env:MCBENCH_POSTGRES_BACKUP_PASSWORD"
mcbench_redis_password = "env:MCBENCH_REDIS_PASSWORD"
mcbench_object_store_access_key = "env:MCBENCH_OBJECT_STORE_ACCESS_KEY"
mcbench_object_store_secret_key = "env:MCBENCH_OBJECT_STORE_SECRET_KEY"
mcbench_secret_key = "env:MCBENCH_SECRET_KEY"
mcbench_flower_password = "env:MCBENCH_FLOWER_PASSWORD"
