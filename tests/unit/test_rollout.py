"""What is to be done about two colours, decided without a host."""

import dataclasses
import hashlib

import pytest

from facts.rollout import ColourState, RolloutState, parse
from operations import rollout
from operations.rollout import Decision, Spec, decide
from settings.secret import Secret

WANTED = {"blue": "b1", "green": "g1"}
GOOD = ColourState(
    state="running", installed="b1", started="b1", modes="644:root:root 600:root:root", enabled=True,
    starts_at_boot=True, health="ok",
)  # fmt: skip
IDLE = ColourState(state="stopped", installed="old", modes=GOOD.modes)


changed = dataclasses.replace


def found(
    active: ColourState | None = GOOD, idle: ColourState | None = IDLE, **more: ColourState
) -> RolloutState:
    colours = {
        ("blue", "systemd"): active,
        ("green", "systemd"): idle,
        ("green", "supervisor"): more.get("foreign"),
    }
    return RolloutState("blue", {pair: state for pair, state in colours.items() if state})


@pytest.mark.parametrize(
    ("state", "decision"),
    [
        (found(), Decision()),
        (found(idle=None), Decision()),
        # nothing there, nothing under the declared supervisor, another spec
        (RolloutState(), Decision(switch=True)),
        (found(active=None), Decision(switch=True)),
        (found(changed(GOOD, installed="b0", started="b0")), Decision(switch=True)),
        # the process is right, its files are not
        (found(changed(GOOD, installed="hand")), Decision(repair=True)),
        (found(changed(GOOD, modes="644:root:root 644:root:root")), Decision(repair=True)),
        (found(changed(GOOD, enabled=False)), Decision(repair=True)),
        (found(changed(GOOD, needs_reload=True)), Decision(repair=True)),
        # the files are right, the process is not
        (found(changed(GOOD, started="hand")), Decision(switch=True)),
        (found(changed(GOOD, started="")), Decision(switch=True)),
        (found(changed(GOOD, health="503")), Decision(switch=True)),
        (found(changed(GOOD, state="starting")), Decision(switch=True)),
        (found(changed(GOOD, state="stopped", health="")), Decision(start=True, repair=True)),
        (found(changed(GOOD, state="failed", health="")), Decision(start=True, repair=True)),
        (found(changed(GOOD, state="failed", installed="hand")), Decision(switch=True)),
        # what a killed run leaves of the other colour
        (found(idle=changed(IDLE, state="running")), Decision(retire=True)),
        (found(idle=changed(IDLE, state="starting")), Decision(retire=True)),
        (found(idle=changed(IDLE, starts_at_boot=True)), Decision(retire=True)),
        (found(idle=changed(IDLE, state="stopping")), Decision()),
        (found(idle=changed(IDLE, state="failed")), Decision()),
        (found(foreign=IDLE), Decision(retire=True)),
        (found(foreign=changed(IDLE, state="stopping", starts_at_boot=True)), Decision()),
    ],
)
def test_decision(state, decision):
    assert decide("systemd", WANTED, state) == decision


def test_spec_is_named_after_all_that_a_start_reads():
    spec = Spec("systemd", "/opt/a/releases/1", "unit @COLOUR@", Secret("A=1\n"), "/health")
    others = [
        Spec("supervisor", "/opt/a/releases/1", "unit @COLOUR@", Secret("A=1\n"), "/health"),
        Spec("systemd", "/opt/a/releases/2", "unit @COLOUR@", Secret("A=1\n"), "/health"),
        Spec("systemd", "/opt/a/releases/1", "unit  @COLOUR@", Secret("A=1\n"), "/health"),
        Spec("systemd", "/opt/a/releases/1", "unit @COLOUR@", Secret("A=2\n"), "/health"),
        Spec("systemd", "/opt/a/releases/1", "unit @COLOUR@", Secret("A=1\n"), "/ready"),
    ]
    assert len({spec.name, *(other.name for other in others)}) == 6
    assert spec.fingerprint("green") == hashlib.sha256(b"unit greenA=1\n").hexdigest()


def test_state_is_read_as_the_script_prints_it():
    lines = [
        "active=green",
        "colour=blue manager=systemd state=stopped",
        "installed=b0",
        "started=",
        "spec=",
        "modes=644:root:root 600:root:root ",
        "colour=green manager=supervisor state=running",
        "installed=g1",
        "started=g1",
        "spec=0123456789ab",
        "modes=644:root:root 600:root:root ",
        "enabled=yes",
        "starts_at_boot=yes",
        "health=curl: (22) error: 503 = bad",
        "previous=ba9876543210",
        "stored=0123456789ab supervisor /opt/a/releases/v1",
    ]
    state = parse(lines)
    assert (state.active, state.previous) == ("green", "ba9876543210")
    assert state.colours[("blue", "systemd")] == ColourState(installed="b0", modes=GOOD.modes)
    assert state.colours[("green", "supervisor")].health == "curl: (22) error: 503 = bad"
    assert state.stored["0123456789ab"].release == "/opt/a/releases/v1"


def test_names_hold_no_sign_that_a_unit_or_a_program_would_expand():
    for manager in ("systemd", "supervisor"):
        for value in rollout.names("shop", manager).values():
            assert not set(value) & set("%$'\"\\;"), value
