"""No secret of liap where it does not belong, and passwords that are changed by the next run while games are played."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.lab import canary, network
from tests.lab.lab import Lab
from tests.lab.liap_site import Players, Site, play, site_of, wait_until
from tests.lab.s3server import S3Server
from tests.lab.state import REPOSITORY, wait_for

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


def test_plans_hold_no_secret(lab: Lab, site: Site) -> None:
    kept = dict(site.secrets)
    server = S3Server(lab.slot, network.gateway(lab.slot)).start()
    try:
        server.client("s3", region="us-east-1").create_bucket(Bucket="liap-archives")
        bucket = {"archive_backend": "s3", "s3_endpoint_url": server.url}
        for settings in ({}, bucket, {"archive_backend": "filesystem"}):
            if settings is bucket:
                # the preflight asks whether they are let in
                site.secrets |= {"LIAP_S3_ACCESS_KEY": server.owner.access_key, "LIAP_S3_SECRET_KEY": server.owner.secret_key}
            run = site.run(DEPLOY, dry=True, extra=LOUD, **settings)
            assert run.ok, run
            assert "liap | Run the stack" in run.changed
            assert canary.in_text(run.stdout + run.stderr, canaries(site)) == []
    finally:
        server.stop()
        site.secrets = kept


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


def test_passwords_are_changed_by_the_next_run_while_games_are_played(site: Site) -> None:
    """That of the database too, which its image would take when it is empty and never again."""
    ask = "docker exec -i liap-postgres-1 psql -U archive -d liap_archive -XAtq"

    def games() -> set[str]:
        return set(site.host.run(ask, input="SELECT game_id FROM archive.completed_games").stdout.split())

    def comes_in(password: str) -> bool:
        words = "docker exec -i liap-postgres-1 sh -c 'read -r PGPASSWORD; export PGPASSWORD; psql -h \"$(hostname -i)\" -U archive -d liap_archive -c \"SELECT 1\"'"
        return site.host.run(words, input=password + "\n", check=False).returncode == 0

    run = site.run(DEPLOY)
    assert run.ok, run
    old = canaries(site)
    before = play(site, 10)
    wait_for("games in the database", lambda: games() >= before.finished, 60)
    assert comes_in(old["LIAP_POSTGRES_PASSWORD"])
    players = Players(site.host.address, 10, moves=10, pause=0.3).start()
    wait_until("10 games", 120, lambda: len(players.begun) >= 10)
    site.secrets |= canary.new(f"LIAP_{name}" for name in SECRETS)
    with canary.sampled(site.host, canaries(site)) as samples:
        run = site.run(DEPLOY, extra=LOUD)
    assert run.ok, run
    assert {"liap | Run the stack", "liap | Have the database take the password"} <= set(run.changed)
    assert canary.in_text(run.stdout + run.stderr, old) == []
    assert canary.in_text(run.stdout + run.stderr, canaries(site)) == []
    assert samples.arguments == set()
    report = players.end()
    assert report.lost == []
    wait_for("all games in the database", lambda: games() >= report.finished | before.finished, 60)
    assert not comes_in(old["LIAP_POSTGRES_PASSWORD"])
    assert comes_in(canaries(site)["LIAP_POSTGRES_PASSWORD"])
    assert json.loads(site.ask("/health")[1])["checks"]["archive"] == "ok"
    # the former ones stand only in what a failed update goes back to, and in what the engine has
    stale = canary.files(site.host, {key: value for key, value in old.items() if key != "LIAP_EXTRA"})
    kept = re.compile(r"/etc/hostwright/compose/liap(-test)?/(previous\.|files/|previous/).*|/var/lib/(docker|containerd)/.*|/run/(docker|containerd).*")
    assert [path for path in stale if not kept.fullmatch(path)] == []
    assert site.run(DEPLOY).changed == []
    # changed by hand, and put right
    site.host.run(ask, input="ALTER ROLE archive PASSWORD 'by-hand-by-somebody'")
    assert site.run(DEPLOY).changed == ["liap | Have the database take the password"]
    assert comes_in(canaries(site)["LIAP_POSTGRES_PASSWORD"])
