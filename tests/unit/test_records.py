"""What every fact returns can be printed by `pyinfra INVENTORY fact …`."""

import importlib
import json
import pkgutil

import pytest
from pyinfra.api import FactBase
from pyinfra_cli.util import json_encode

import facts
from facts.rollout import ColourState, RolloutState


def every_fact():
    for module in pkgutil.iter_modules(facts.__path__):
        for name, value in vars(importlib.import_module(f"facts.{module.name}")).items():
            if isinstance(value, type) and issubclass(value, FactBase) and value is not FactBase:
                yield pytest.param(value, id=f"{module.name}.{name}")


@pytest.mark.parametrize("fact", every_fact())
def test_fact_of_nothing_can_be_printed(fact):
    json.dumps(fact.default(), default=json_encode)


def test_tuple_keys_are_joined():
    state = RolloutState(colours={("blue", "systemd"): ColourState(state="running")})
    assert state.to_json()["colours"]["blue systemd"]["state"] == "running"
