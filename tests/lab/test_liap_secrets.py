"""No secret of liap where it does not belong."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab import canary
from tests.lab.lab import Lab
from tests.lab.liap_site import Site, site_of
from tests.lab.state import REPOSITORY

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]

DEPLOY = REPOSITORY / "deploy.py"
# pyinfra at its most talkative: every command with its output, its internals, the content of every file it uploads.
LOUD = ("-vvv", "--debug", "--diff")
SECRETS = ("REDIS_PASSWORD", "POSTGRES_PASSWORD", "POSTGRES_BACKUP_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "STACK_PASSWORD", "EXTRA")
# what reads them: the environment of containers is the engine's, below it all is root's alone
EXPECTED = re.compile(
    r"/etc/hostwright/compose/liap(-test)?/.*|/etc/hostwright/backup/liap-archive-postgresql\.env|/var/lib/(docker|containerd)/.*|/run/(docker|containerd).*"
)


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Site]:
    with site_of(lab, "t-liap-secrets") as made:
        made.secrets |= canary.new(f"LIAP_{name}" for name in SECRETS)
        made.more = {
            "archive_backend": "postgresql", "stacks": ["test"], "stack_password": "env:LIAP_STACK_PASSWORD", "extra_secret_env": {"TOKEN": "env:LIAP_EXTRA"},
        }  # fmt: skip
        yield made


def canaries(site: Site) -> dict[str, str]:
    return {name: site.secrets[name] for name in (f"LIAP_{name}" for name in SECRETS)}


def test_first_converge_shows_none_and_puts_them_where_they_belong(site: Site) -> None:
    with canary.sampled(site.host, canaries(site)) as samples:
        run = site.run(DEPLOY, extra=LOUD)
    assert run.ok, run
    assert canary.in_text(run.stdout + run.stderr, canaries(site)) == []
    assert samples.count / samples.seconds > canary.SAMPLES_PER_SECOND * 0.1
    assert samples.arguments == set()
    assert samples.environments
    # root, the backend's own user (liap_user), and that of Redis and of PostgreSQL in their images
    assert {uid for uid, _ in samples.environments} <= {0, 10001, 999}
    found = canary.files(site.host, canaries(site))
    assert found
    assert [path for path in found if not EXPECTED.fullmatch(path)] == []
    for path in found:
        assert site.host.run(f"setpriv --reuid=65534 --regid=65534 --clear-groups head -c 1 '{path}'", check=False).returncode != 0, path
    assert canary.journal(site.host, canaries(site)) == []
