"""Hosts of the group liap."""

liap_repository = "registry.example.org/liap-backend"
liap_version = "1.4.0"

liap_redis_password = "env:LIAP_REDIS_PASSWORD"
liap_s3_access_key = "env:LIAP_S3_ACCESS_KEY"
liap_s3_secret_key = "env:LIAP_S3_SECRET_KEY"

# the safety net of the games in memory
base_swap_size_mb = 1024
