"""Hosts of the group monitoring: Prometheus and Alertmanager. Who is watched says so in its own data (docs/monitoring.md)."""

monitoring_enabled = True
monitoring_webhook_url = "env:MONITORING_WEBHOOK_URL"
