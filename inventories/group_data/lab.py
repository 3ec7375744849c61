"""Hosts of inventories/lab.py: real hosts on this machine. Addresses and paths of the slot come from that file."""

certificate_email = "ops@hostwright.test"
certificate_directory = "https://acme.hostwright.test:14000/dir"
certificate_ca_bundle = "/etc/hostwright/lab-ca.pem"

gateway_admin_api_key = "env:GATEWAY_ADMIN_API_KEY"
gateway_settle_seconds = 6
gateway_start_timeout_seconds = 30

backup_password = "env:BACKUP_PASSWORD"
