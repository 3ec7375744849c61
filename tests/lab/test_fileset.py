"""File sets and unit state on a real host, read back with stat, cat and systemctl."""

import textwrap

import pytest

HEAD = (
    "from operations import fileset, unit\n"
    "from operations.fileset import Absent, Directory, File, Symlink\n"
    "from settings.secret import Secret\n"
)
# A service that reads its configuration once, at its start, and refuses to run on a broken one.
SERVICE = textwrap.dedent("""\
    [Service]
    ExecStart=/bin/sh -c 'read word < /etc/demo/demo.conf; [ "$word" != broken ] || exit 7; \\
        echo "$word" > /run/demo.word; exec sleep infinity'
    ExecReload=/bin/sh -c 'cp /etc/demo/demo.conf /run/demo.word'
    [Install]
    WantedBy=multi-user.target
    """)


def files(entries: str, **arguments: object) -> str:
    rest = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"{HEAD}fileset.files([{entries}]{rest}, name='Write files')\n"


def demo(word: str, **arguments: object) -> str:
    """Deploy text: the service's configuration and unit file, then the service running and enabled."""
    entries = f"File('/etc/demo/demo.conf', {word + chr(10)!r}), File('/etc/systemd/system/demo.service', {SERVICE!r})"
    return (
        files(entries, unit="demo.service", settle_seconds=1, **arguments)
        + "unit.unit('demo.service', inputs=['/etc/demo/demo.conf'], settle_seconds=1, name='Run demo')\n"
    )


def pid(host) -> str:
    return host.run("systemctl show -p MainPID --value demo.service").stdout.strip()


@pytest.fixture
def service(host, provision):
    """The demo service, converged on the word `one`."""
    run = provision(host, demo("one"))
    assert run.ok, run.stderr
    assert host.read("/run/demo.word") == "one\n"
    return host


def test_set_noop_update_unset(host, provision):
    entries = (
        "Directory('/etc/shop', mode='0750'), File('/etc/shop/a.conf', 'ä $HOME \\\\ `x`\\n'), "
        "File('/etc/shop/key', Secret('s3cret\\n'), mode='0640', group='adm'), Symlink('/etc/shop/link', 'a.conf')"
    )
    run = provision(host, files(entries))
    assert run.ok, run.stderr
    assert run.changed == ["Write files"]
    stat = host.run("stat -c '%n %a %U %G %F' /etc/shop /etc/shop/*").stdout.splitlines()
    assert stat == [
        "/etc/shop 750 root root directory",
        "/etc/shop/a.conf 644 root root regular file",
        "/etc/shop/key 640 root adm regular file",
        "/etc/shop/link 777 root root symbolic link",
    ]
    assert host.read("/etc/shop/link") == "ä $HOME \\ `x`\n"
    inodes = host.run("stat -c '%i %Z' /etc/shop/*").stdout

    again = provision(host, files(entries))
    assert again.ok
    assert again.changed == []
    assert host.run("stat -c '%i %Z' /etc/shop/*").stdout == inodes

    host.run(
        "chmod 0666 /etc/shop/key; echo drift >> /etc/shop/a.conf; rm /etc/shop/link; ln -s /etc/passwd /etc/shop/link"
    )
    healed = provision(host, files(entries))
    assert healed.changed == ["Write files"]
    assert host.run("stat -c '%n %a %U %G %F' /etc/shop /etc/shop/*").stdout.splitlines() == stat
    assert host.read("/etc/shop/link") == "ä $HOME \\ `x`\n"

    gone = provision(
        host, files("Absent('/etc/shop/a.conf'), Absent('/etc/shop/link'), Absent('/etc/shop/never')")
    )
    assert gone.changed == ["Write files"]
    assert host.run("ls -A /etc/shop").stdout.split() == ["key"]


def test_directory_is_never_removed_for_a_file(host, provision):
    host.run("mkdir -p /etc/precious && echo data > /etc/precious/data")
    for entries in (
        "File('/etc/precious', 'x')",
        "Absent('/etc/precious')",
        "Symlink('/etc/precious', '/tmp')",
    ):
        run = provision(host, files(entries))
        assert not run.ok
        assert "/etc/precious: is a directory" in run.stdout + run.stderr
    assert host.read("/etc/precious/data") == "data\n"


def test_unknown_owner_is_refused_before_any_change(host, provision):
    run = provision(host, files("File('/etc/new-a', 'x'), File('/etc/new-b', 'x', owner='nobody-here')"))
    assert not run.ok
    assert "/etc/new-b: no user nobody-here on this host" in run.stdout + run.stderr
    assert host.run("ls /etc/new-a /etc/new-b /etc/.new-a.dpkg-new", check=False).stdout == ""


def test_candidates_are_validated_where_they_will_stand_and_nothing_changes_when_they_fail(host, provision):
    host.run(
        "mkdir -p /etc/val && echo old > /etc/val/a && echo stays > /etc/val/b && echo goes > /etc/val/c"
    )
    validate = 'test "$(cat /etc/val/a)" = new && grep -q stays /etc/val/b && test ! -e /etc/val/c'
    bad = provision(
        host,
        files("File('/etc/val/a', 'other\\n'), Absent('/etc/val/c')", validate=validate, within="/etc/val"),
    )
    assert not bad.ok
    assert "nothing was changed" in bad.stdout + bad.stderr
    assert host.run("cat /etc/val/*").stdout == "old\nstays\ngoes\n"
    good = provision(
        host,
        files("File('/etc/val/a', 'new\\n'), Absent('/etc/val/c')", validate=validate, within="/etc/val"),
    )
    assert good.ok, good.stderr
    assert host.run("cat /etc/val/*; ls -A /etc/val").stdout == "new\nstays\na\nb\n"


def test_full_disk_leaves_the_old_file(host, provision):
    host.run("mkdir -p /srv/full")
    host.fill_disk("/srv/full")
    try:
        host.run("ls -A /srv/full")
        run = provision(host, files("File('/srv/full/big', 'x' * 5_000_000)"))
        assert not run.ok
        assert "No space left on device" in run.stdout + run.stderr
        assert host.run("find /srv/full -name '*big*'").stdout == ""
    finally:
        host.free_disk()


def test_service_runs_on_its_files_and_second_run_restarts_nothing(service, provision):
    before = pid(service)
    again = provision(service, demo("one"))
    assert again.ok
    assert again.changed == []
    assert pid(service) == before
    changed = provision(service, demo("two"))
    assert changed.changed == ["Write files"]
    assert service.read("/run/demo.word") == "two\n"
    assert pid(service) != before


def test_broken_configuration_is_put_back_and_the_old_service_runs(service, provision):
    run = provision(service, demo("broken"))
    assert not run.ok
    assert "putting the old files back" in run.stdout + run.stderr
    assert service.read("/etc/demo/demo.conf") == "one\n"
    assert service.run("systemctl is-active demo.service").stdout == "active\n"
    assert service.run("ls -A /etc/demo").stdout == "demo.conf\n"
    after = provision(service, demo("one"))
    assert after.ok
    assert after.changed == []


def test_failing_probe_puts_the_old_files_back(service, provision):
    run = provision(service, demo("three", probe="grep -q one /run/demo.word", probe_seconds=2))
    assert not run.ok
    assert "probe failed for 2s" in run.stdout + run.stderr
    assert service.read("/run/demo.word") == "one\n"


def test_restart_that_a_killed_run_owed_is_done(service, provision):
    # what a run leaves that is killed between the swap and the restart: the new file, and the old one kept beside it
    service.run(
        "cp -a /etc/demo/demo.conf /etc/demo/.demo.conf.dpkg-old; echo four > /etc/demo/.demo.conf.dpkg-new"
    )
    service.run("mv /etc/demo/.demo.conf.dpkg-new /etc/demo/demo.conf")
    run = provision(service, demo("four"))
    assert run.changed == ["Write files"]
    assert service.read("/run/demo.word") == "four\n"
    assert service.run("ls -A /etc/demo").stdout == "demo.conf\n"
    assert provision(service, demo("four")).changed == []


def test_killed_run_that_left_a_broken_file_goes_back_to_what_served(service, provision):
    service.run("cp -a /etc/demo/demo.conf /etc/demo/.demo.conf.dpkg-old; echo broken > /etc/demo/demo.conf")
    run = provision(service, demo("broken"))
    assert not run.ok
    assert service.read("/etc/demo/demo.conf") == "one\n"
    assert service.run("systemctl is-active demo.service").stdout == "active\n"


def test_reload_keeps_the_process(service, provision):
    before = pid(service)
    run = provision(service, demo("five", action="reload").replace("inputs=['/etc/demo/demo.conf'], ", ""))
    assert run.ok, run.stderr
    assert service.read("/run/demo.word") == "five\n"
    assert pid(service) == before


def test_edit_by_hand_is_healed_and_restarted(service, provision):
    service.run("echo hand > /etc/demo/demo.conf; systemctl restart demo.service")
    assert service.read("/run/demo.word") == "hand\n"
    run = provision(service, demo("one"))
    assert run.changed == ["Write files"]
    assert service.read("/run/demo.word") == "one\n"


def test_reboot_owes_nothing(service, provision):
    service.reboot()
    service.run("systemctl is-active demo.service")
    run = provision(service, demo("one"))
    assert run.ok, run.stderr
    assert run.changed == []


def test_change_that_the_clock_hides_is_still_owed_its_restart(host, provision):
    """A file whose change time lies before the start of the unit, as after a clock that was set back."""
    host.run("mkdir -p /etc/demo && echo hidden > /etc/demo/older.conf")
    assert provision(host, demo("one")).ok
    assert provision(host, demo("two")).ok
    host.run("mount --bind /etc/demo/older.conf /etc/demo/demo.conf")
    try:
        assert provision(host, demo("hidden")).changed == ["Write files"]
        assert host.read("/run/demo.word") == "hidden\n"
        assert provision(host, demo("hidden")).changed == []
    finally:
        host.run("umount /etc/demo/demo.conf; rm /etc/demo/older.conf")


def test_apply_is_done_once_and_again_when_it_was_owed(host, provision):
    text = files("File('/etc/applied.conf', 'x\\n')", apply="echo applied >> /run/applied.log")
    assert provision(host, text).changed == ["Write files"]
    assert provision(host, text).changed == []
    host.run("rm /var/lib/hostwright/applied/files.*")
    assert provision(host, text).changed == ["Write files"]
    assert host.read("/run/applied.log") == "applied\napplied\n"


def test_secret_is_nowhere_but_in_its_file(host, provision):
    run = provision(
        host, files("File('/etc/canary', Secret('c4n4ry-of-the-mine\\n'), mode='0600')"), extra=["-vvv"]
    )
    assert run.ok, run.stderr
    assert "c4n4ry-of-the-mine" not in run.stdout + run.stderr
    assert (
        host.run("grep -rl c4n4ry-of-the-mine /etc /tmp /var /run /root", check=False).stdout
        == "/etc/canary\n"
    )
    assert host.run("stat -c %a /etc/canary").stdout == "600\n"


def test_diff_shows_open_files_and_hides_closed_ones(host, provision):
    host.run(
        "echo closed-before > /etc/shadowed; chmod 0600 /etc/shadowed; echo old-line > /etc/open; chmod 0644 /etc/open"
    )
    run = provision(
        host,
        files(
            "File('/etc/open', 'new-line\\n'), File('/etc/shadowed', 'now-open\\n'), "
            "File('/etc/hidden', Secret('hidden-word\\n'), mode='0600')"
        ),
        dry=True,
        extra=["--diff"],
    )
    shown = run.stdout + run.stderr
    assert "old-line" in shown
    assert "new-line" in shown
    assert not any(word in shown for word in ("closed-before", "now-open", "hidden-word"))
    assert host.read("/etc/open") == "old-line\n"
