"""Hosts of the group ci_runner."""

ci_runner_url = "https://github.com/example/shop"
ci_runner_access_token = "env:CI_RUNNER_ACCESS_TOKEN"
ci_runner_version = "2.320.0"
# of the archives of that release, as its page shows them; a sample
ci_runner_sha256 = {"x64": "1" * 64, "arm64": "2" * 64}

# jobs fill the journal; what counts of them is in the CI system
base_journald_max_use = "200M"
base_journald_max_retention = "1week"
