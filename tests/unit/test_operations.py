"""What holds for every operation and fact module, whatever it does."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import pyinfra.operations
import pytest
from pyinfra.api.arguments import all_argument_meta

import facts
import operations

ROOT = Path(__file__).parents[2]
MODULES = sorted(module.name for module in pkgutil.iter_modules(operations.__path__))
FACTS = sorted(module.name for module in pkgutil.iter_modules(facts.__path__))
# These are no operations: they are how operations are written.
TOOLS = {"deadman", "script", "template"}
NOUNS = [module for module in MODULES if module not in TOOLS]


def public_operations(module: str) -> list[tuple[str, object]]:
    loaded = importlib.import_module(f"operations.{module}")
    return [
        (name, value)
        for name, value in vars(loaded).items()
        if hasattr(value, "_inner") and getattr(value, "__module__", "") == loaded.__name__
    ]


@pytest.mark.parametrize("module", NOUNS)
def test_module_holds_operations_with_docstrings(module):
    found = public_operations(module)
    assert found, f"operations/{module}.py has no operation"
    for name, operation in found:
        assert inspect.getdoc(operation), f"{module}.{name} has no docstring"


@pytest.mark.parametrize("module", NOUNS)
def test_no_parameter_shadows_a_global_argument(module):
    """pyinfra takes these away before the operation sees them."""
    taken = {"name", *all_argument_meta}
    for name, operation in public_operations(module):
        parameters = set(inspect.signature(operation._inner).parameters)
        assert not parameters & taken, f"{module}.{name}"


@pytest.mark.parametrize("module", NOUNS)
def test_every_parameter_is_documented(module):
    for name, operation in public_operations(module):
        text = inspect.getdoc(operation) or ""
        if "Arguments are those of" in text:
            continue
        missing = [one for one in inspect.signature(operation._inner).parameters if one not in text]
        assert not missing, f"{module}.{name}: {missing}"


@pytest.mark.parametrize("module", [*MODULES, *FACTS])
def test_no_module_repeats_a_name_of_pyinfra(module):
    """`from operations import x` and `from pyinfra.operations import x` must be readable side by side."""
    assert module not in {one.name for one in pkgutil.iter_modules(pyinfra.operations.__path__)}


@pytest.mark.parametrize("module", NOUNS)
def test_noun_has_its_rooms(module):
    """Operation, unit or lab test and docs page of one noun share one file name."""
    assert (ROOT / f"docs/operations/{module}.md").is_file()
    assert (ROOT / f"tests/lab/test_{module}.py").is_file()


@pytest.mark.parametrize("module", FACTS)
def test_fact_shares_the_name_of_its_operation(module):
    assert module in MODULES or module in {"records", "systems"}
