"""Arguments of `operations.journald`."""

import pytest

from operations.journald import limit_faults


@pytest.mark.parametrize("span", ["1month", "14days", "90min", "2weeks", "1year", "3600s", "12h"])
def test_good_limits_have_no_fault(span: str) -> None:
    assert limit_faults("500M", span, "") == []
    assert limit_faults("2G", span, "1G") == []


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (("500MB", "1month", ""), "max_use must be"),
        (("500", "1month", ""), "max_use must be"),
        (("0M", "1month", ""), "max_use must be"),
        (("", "1month", ""), "max_use must be"),
        (("500M", "forever", ""), "max_retention must be"),
        (("500M", "1", ""), "max_retention must be"),
        (("500M", "1month", "10%"), "keep_free must be"),
        (("500M\nStorage=none", "1month", ""), "max_use must be"),
    ],
)
def test_bad_limits_are_named(limits: tuple[str, str, str], said: str) -> None:
    (fault,) = limit_faults(*limits)
    assert said in fault
