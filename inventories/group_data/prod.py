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

backup_offsite_repository = "s3:https://s3.example.org/hostwright-prod"
backup_offsite_env = {
    "AWS_ACCESS_KEY_ID": "env:BACKUP_S3_ID",
    "AWS_SECRET_ACCESS_KEY": "env:BACKUP_S3_SECRET",
}
