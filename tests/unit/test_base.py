"""What the base deploy asks for, without a host."""

import pytest

from deploys.base import KERNEL, kernel_parameters, packages
from facts.account import parse as parse_accounts
from operations.account import keys_text, sudoers_text
from operations.kernel import path_of, text
from operations.template import render
from settings import Admin, Base

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJm+kq0ewY0y8WcTnVtxhm1VWSH8Wm1lyTAhM3g1AAAA"
PARTS = [name for name in Base.model_fields if name.endswith("_enabled")]


def test_packages_are_those_of_the_parts_that_are_on():
    off = {part: False for part in PARTS}
    assert packages(Base(**off)) == []
    assert packages(Base(**{**off, "firewall_enabled": True})) == ["ufw"]
    assert packages(Base(**{**off, "packages_enabled": True, "packages": ("htop", "curl")})) == ["curl", "htop"]


def test_kernel_parameters_never_break_containers():
    assert not [key for key in KERNEL if "forward" in key or "bridge-nf" in key]
    assert KERNEL["net.ipv4.conf.all.rp_filter"] == "2"


def test_settings_win_over_the_hardened_defaults():
    assert kernel_parameters(Base(sysctl={"kernel.sysrq": "1"}))["kernel.sysrq"] == "1"


def test_swappiness_is_set_where_there_is_a_swap_file():
    assert "vm.swappiness" not in kernel_parameters(Base())
    assert kernel_parameters(Base(swap_size_mb=1))["vm.swappiness"] == "10"
    assert "vm.swappiness" not in kernel_parameters(Base(swap_size_mb=1, swap_enabled=False))


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.tcp_syncookies", "net/ipv4/tcp_syncookies"),
        ("net/ipv4/conf/eth0.5/rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
        ("net.ipv4.conf.eth0/5.rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
    ],
)
def test_first_separator_of_a_kernel_parameter_decides(key, path):
    assert path_of(key) == path


def test_kernel_parameters_are_written_in_order():
    assert text({"b.c": "2", "a.b": "1"}).splitlines()[1:] == ["a.b = 1", "b.c = 2"]


def test_sudo_is_given_by_name_and_only_when_declared():
    ann, bob = Admin(name="ann", keys=(KEY,)), Admin(name="bob", keys=(KEY,), sudo="no")
    assert sudoers_text([ann, bob]).splitlines()[1:] == ["ann ALL=(ALL:ALL) NOPASSWD: ALL"]
    assert sudoers_text([bob]) == ""
    assert keys_text(ann).splitlines()[1:] == [KEY]


def test_accounts_are_read():
    state = parse_accounts(
        [
            "member\tann",
            "group\tyes",
            "account\tann /bin/bash no never ann:600 abc",
            "account\tbob /bin/sh yes 1 - ",
            "sudoers\troot:440 def",
        ]
    )
    assert state.accounts["ann"].keys_sha256 == "abc"
    assert not state.accounts["ann"].has_password
    assert state.accounts["bob"].has_password
    assert (state.accounts["bob"].expires, state.accounts["bob"].keys_owner) == ("1", "-")
    assert (state.group, state.members, state.sudoers) == (True, {"ann"}, ("root:440", "def"))


def test_held_packages_are_regular_expressions_that_apt_reads():
    found = render("base/99hostwright-updates.j2", hold=["libstdc++6", "docker.io"], reboot=True, reboot_at="04:00")
    assert r'"^libstdc\+\+6$";' in found
    assert '"^docker.io$";' in found
    assert 'Automatic-Reboot "true";' in found
