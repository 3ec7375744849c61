"""Hosts of the cricksy system, whatever their role."""

cricksy_repository = "https://git.example.org/cricksy.git"
cricksy_version = "v1.4.0"

cricksy_postgres_password = "env:CRICKSY_POSTGRES_PASSWORD"
cricksy_postgres_owner_password = "env:CRICKSY_POSTGRES_OWNER_PASSWORD"
cricksy_postgres_backup_password = "env:CRICKSY_POSTGRES_BACKUP_PASSWORD"
cricksy_redis_password = "env:CRICKSY_REDIS_PASSWORD"
cricksy_redis_admin_password = "env:CRICKSY_REDIS_ADMIN_PASSWORD"
cricksy_flower_password = "env:CRICKSY_FLOWER_PASSWORD"
cricksy_s3_access_key = "env:CRICKSY_S3_ACCESS_KEY"
cricksy_s3_secret_key = "env:CRICKSY_S3_SECRET_KEY"
