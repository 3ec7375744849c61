"""Hosts of the group gateway."""

gateway_repository = "https://git.example.org/multiverse-gateway.git"
gateway_version = "v1.4.0"
gateway_admin_api_key = "env:GATEWAY_ADMIN_API_KEY"
