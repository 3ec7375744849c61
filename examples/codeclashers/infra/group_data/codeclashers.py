"""Settings of codeclashers from the guide's secrets and variables, by their names."""

import os

ssh_user = "root"
ssh_strict_host_key_checking = "yes"

backup_password = "env:BACKUP_PASSWORD"

codeclashers_redis_password = "env:REDIS_PASSWORD"
codeclashers_judge0_postgres_password = "env:JUDGE0_POSTGRES_PASSWORD"
codeclashers_mongodb_password = "env:MONGODB_PASSWORD"
codeclashers_openai_api_key = "env:OPENAI_API_KEY"
codeclashers_internal_service_secret = "env:INTERNAL_SERVICE_SECRET"
codeclashers_bot_service_secret = "env:BOT_SERVICE_SECRET"
codeclashers_colyseus_reservation_secret = "env:COLYSEUS_RESERVATION_SECRET"
codeclashers_aws_access_key_id = "env:AWS_ACCESS_KEY_ID"
codeclashers_aws_secret_access_key = "env:AWS_SECRET_ACCESS_KEY"
codeclashers_s3_bucket_name = os.environ.get("S3_BUCKET_NAME", "")

# The guide keeps these among its secrets; what is not set has the setting's default. (In a loop its last value, which may
# be a secret, would stay behind as host data.)
globals().update(
    {
        f"codeclashers_{name.lower()}": os.environ[name]
        for name in ("JUDGE0_POSTGRES_USER", "JUDGE0_POSTGRES_DB", "MONGODB_USERNAME", "AWS_REGION")
        if os.environ.get(name)
    }
)

# K8S_COLYSEUS_REPLICAS becomes codeclashers_colyseus_replicas; one that does not exist is refused.
globals().update(
    {
        f"codeclashers_{name.removeprefix('K8S_').lower()}": int(value) if name.endswith("_REPLICAS") and value.isdigit() else value
        for name, value in os.environ.items()
        if name.startswith("K8S_") and value
    }
)

# The token of a job ends with the job: this account may read packages, and stays.
if os.environ.get("REGISTRY_USERNAME"):
    codeclashers_registry_username = os.environ["REGISTRY_USERNAME"]
    codeclashers_registry_password = "env:REGISTRY_PASSWORD"
