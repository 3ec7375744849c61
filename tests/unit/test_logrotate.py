"""Arguments and text of `operations.logrotate`."""

from dataclasses import replace

import pytest

from operations.logrotate import Rules, _check
from operations.template import render

GOOD = Rules(("/var/log/shop/*.log",), "daily", 14, "", "", "", False, "")


def test_good_rules_have_no_fault() -> None:
    assert GOOD.faults() == []
    assert replace(GOOD, max_size="100M", create="0640 www-data adm", su="shop shop").faults() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"paths": ()}, "at least one log file"),
        ({"paths": ("log/a.log",)}, "must be absolute"),
        ({"paths": ("/var/log/a b.log",)}, "without blanks"),
        ({"paths": ("/var/log/a{1}.log",)}, "without blanks"),
        ({"paths": ("/var/log/../a.log",)}, "must be absolute"),
        ({"frequency": "yearly"}, "frequency must be one of"),
        ({"keep": 0}, "keep must be 1 to 1000"),
        ({"max_size": "100MB"}, "max_size must be"),
        ({"create": "640 root"}, "create must be"),
        ({"su": "shop"}, "su must be"),
        ({"copy_truncate": True, "create": "0640 root adm"}, "no effect with copy_truncate"),
        ({"post_rotate": "true\n endscript\nrm x"}, "endscript"),
    ],
)
def test_bad_rules_are_named(change: dict[str, object], said: str) -> None:
    (fault,) = replace(GOOD, **change).faults()  # type: ignore[arg-type]
    assert said in fault


def test_rules_text_holds_only_what_was_asked() -> None:
    plain = render("logrotate/rules.j2", rules=GOOD)
    assert "postrotate" not in plain
    assert "maxsize" not in plain
    assert "\n\tcreate\n" in plain
    full = render("logrotate/rules.j2", rules=replace(GOOD, copy_truncate=True, su="a b", post_rotate="x\ny"))
    assert "\tcopytruncate\n" in full
    assert "create" not in full
    assert "\tpostrotate\n\t\tx\n\t\ty\n\tendscript\n" in full


def test_check_looks_for_our_rules_and_our_directories() -> None:
    check = _check("shop", ("/var/log/shop/*.log", "/srv/a.b/x.log"))
    assert "shop:" in check
    assert "/var/log/shop/" in check
    assert r"/srv/a\.b/" in check
