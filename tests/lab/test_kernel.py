"""Kernel parameters, read back with sysctl."""

from __future__ import annotations

FILE = "/etc/sysctl.d/99-zz-hostwright.conf"


def parameters(**values: str) -> str:
    wanted = {key.replace("__", "."): value for key, value in values.items()}
    return f"from operations import kernel\nkernel.parameters({wanted!r}, name='Kernel')\n"


def live(host, key: str) -> str:
    return host.run(f"sysctl -n {key}").stdout.strip()


def test_set_no_op_update_heal_unset(host, provision):
    # kernel.panic is the outer machine's: a container writes it down for a boot of its own and leaves it alone.
    outer = live(host, "kernel.panic")
    wanted = {"net__ipv4__tcp_fin_timeout": "25", "kernel__panic": "21", "no__such__parameter": "1"}
    assert provision(host, parameters(**wanted)).changed == ["Kernel"]
    assert (live(host, "net.ipv4.tcp_fin_timeout"), live(host, "kernel.panic")) == ("25", outer)
    assert host.read(FILE).splitlines()[1:] == [
        *("kernel.panic = 21", "net.ipv4.tcp_fin_timeout = 25", "no.such.parameter = 1")
    ]
    assert provision(host, parameters(**wanted)).changed == []
    host.run("sysctl -q -w net.ipv4.tcp_fin_timeout=60")
    assert provision(host, parameters(**wanted)).changed == ["Kernel"]
    host.run(f"echo 'kernel.panic = 1' >> {FILE}")
    assert provision(host, parameters(**wanted)).changed == ["Kernel"]
    assert provision(host, parameters(net__ipv4__tcp_fin_timeout="30")).changed == ["Kernel"]
    assert live(host, "net.ipv4.tcp_fin_timeout") == "30"
    assert provision(host, parameters()).changed == ["Kernel"]
    assert not host.exists(FILE)
    assert provision(host, parameters()).changed == []


def test_values_with_several_numbers_are_compared_by_number(host, provision):
    wanted = parameters(net__ipv4__ip_local_port_range="20000 60000")
    assert provision(host, wanted).changed == ["Kernel"]
    assert provision(host, wanted).changed == []


def test_value_that_the_kernel_refuses_fails(host, provision):
    run = provision(host, parameters(net__ipv4__tcp_fin_timeout="words"))
    assert run.failed == ["Kernel"]


def test_forwarding_is_not_turned_off(host, provision):
    run = provision(host, parameters(net__ipv4__ip_forward="0"))
    assert not run.ok
    assert "it would cut containers off" in run.stderr
