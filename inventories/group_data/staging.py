"""Hosts of inventories/staging.py."""

certificate_staging = True
