"""Hosts of the group ci_runner."""

# jobs fill the journal; what counts of them is in the CI system
base_journald_max_use = "200M"
base_journald_max_retention = "1week"
