"""What every fact returns can be printed by `pyinfra INVENTORY fact …`."""

import importlib
import json
import pkgutil

import pytest
from pyinfra.api import FactBase

import facts
from facts.rollout import ColourState, RolloutState


def every_fact():
    for module in pkgutil.iter_modules(facts.__path__):
        for name, value in vars(importlib.import_module(f"facts.{module.name}")).items():
            if isinstance(value, type) and issubclass(value, FactBase) and value is not FactBase:
                yield pytest.param(value, id=f"{module.name}.{name}")


@pytest.mark.parametrize("fact", every_fact())
def test_fact_of_nothing_can_be_printed(fact):
    # What pyinfra's own encoder takes. Importing that would replace this process's threads by gevent's.
    json.dumps(fact.default(), default=lambda value: list(value) if isinstance(value, set) else value.to_json())


def test_tuple_keys_are_joined():
    state = RolloutState(colours={("blue", "systemd"): ColourState(state="running")})
    assert state.to_json()["colours"]["blue systemd"]["state"] == "running"
