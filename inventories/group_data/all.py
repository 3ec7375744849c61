"""Every host of every inventory. `python -m settings.reference` lists all settings with their defaults."""

ssh_user = "root"
ssh_strict_host_key_checking = "yes"

certificate_email = "ops@example.org"

backup_password = "env:BACKUP_PASSWORD"
