"""sshd's wanted and effective configuration, without a host."""

import pytest

from facts.sshd import SshdState, parse
from operations.sshd import overridden, wanted_lines
from operations.template import render

RECORDS = """\
installed\tyes
mode\t644 root root
sha256\tabc
first\tInclude   /etc/ssh/sshd_config.d/*.conf
effective\tport 22
effective\tport 2222
effective\tpasswordauthentication no
unread\t/etc/ssh/sshd_config"""


def test_records_are_read():
    state = parse(RECORDS.splitlines())
    assert state.drop_in == ("abc", "644", "root", "root")
    assert state.first == "Include /etc/ssh/sshd_config.d/*.conf"
    assert state.ports == {22, 2222}
    assert state.unread == ("/etc/ssh/sshd_config",)
    assert not state.unproven


def test_ports_are_those_of_the_socket_when_systemd_listens():
    assert parse([*RECORDS.splitlines(), "socket\t2022", "socket\t2022"]).ports == {2022}


def test_nothing_known_is_a_host_without_sshd():
    assert parse([]) == SshdState()


def test_what_does_not_count_is_named():
    state = SshdState(effective=frozenset({"port 22", "port 2222", "passwordauthentication yes"}))
    assert overridden(state, ["passwordauthentication no"], [22]) == [
        "passwordauthentication no",
        "port 2222 is open as well",
    ]


@pytest.mark.parametrize(("setting", "shown"), [("prohibit-password", "without-password"), ("no", "no")])
def test_root_is_asked_for_by_the_name_that_sshd_prints(setting, shown):
    assert f"permitrootlogin {shown}" in wanted_lines(setting)


def test_drop_in_says_what_must_count():
    text = render("sshd/00-hostwright.conf.j2", ports=[22, 2222], permit_root="no").lower()
    assert all(f"\n{line}\n" in text for line in (*wanted_lines("no"), "port 22", "port 2222"))
