"""Hosts of inventories/prod.py."""

base_admins = [
    {
        "name": "ann",
        "keys": [
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLEEXAMPLEEXAMPLEEXAMPLEEXAMPLEEXAMPLE ann@laptop"
        ],
    },
]

gateway_hsts_seconds = 31536000
gateway_log_level = "WARNING"

mcbench_api_domain = "api.example.org"
mcbench_admin_domain = "mcbench-admin.example.org"
mcbench_flower_domain = "flower.example.org"
mcbench_cors_allowed_origin = "https://frontend.example.org"
mcbench_admin_networks = ["192.0.2.0/24"]
mcbench_internal_networks = ["10.0.0.0/24"]
mcbench_postgres_host = "10.0.0.41"
mcbench_redis_host = "10.0.0.41"
mcbench_object_store_dsn = "10.0.0.41:9000"
mcbench_openai_api_key = "env:MCBENCH_OPENAI_API_KEY"
mcbench_hsts_seconds = 31536000

backup_offsite_repository = "s3:https://s3.example.org/hostwright-prod"
backup_offsite_env = {
    "AWS_ACCESS_KEY_ID": "env:BACKUP_S3_ID",
    "AWS_SECRET_ACCESS_KEY": "env:BACKUP_S3_SECRET",
}

cricksy_domain = "cricksy.example.org"
cricksy_flower_domain = "cricksy-flower.example.org"
cricksy_flower_networks = ["192.0.2.0/24"]
cricksy_cors_origins = ["https://app.example.org"]
cricksy_s3_bucket = "cricksy-uploads-prod"
cricksy_s3_region = "eu-central-1"
cricksy_s3_manage_bucket = True
cricksy_postgres_host = "10.0.0.71"
cricksy_redis_host = "10.0.0.71"
cricksy_infra_networks = ["10.0.0.0/24"]
cricksy_infra_ca = "file:secrets/cricksy.yaml#ca"
cricksy_infra_certificate = "file:secrets/cricksy.yaml#certificate"
cricksy_infra_key = "file:secrets/cricksy.yaml#key"
cricksy_worker_instances = 2
cricksy_hsts_seconds = 31536000

liap_s3_region = "eu-central-1"
liap_hsts_seconds = 31536000

monitoring_sources = ["10.0.0.81/32"]
