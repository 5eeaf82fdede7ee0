"""The front door: what may be imported, and what is not imported behind anybody's back."""

import inspect
import subprocess
import sys

import pytest

import threadloom
import threadloom.testing
from threadloom import errors

EXTRAS = ("aiohttp", "asyncpg", "rich")
TEST_TOOLS = ("hypothesis", "pytest", "pytest_asyncio", "threadloom.testing")


def modules_after(statement):
    """Return the names of all modules that a new interpreter has after a statement."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", [threadloom, threadloom.testing, errors])
def test_all_is_sorted_and_there(module):
    assert module.__all__ == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_every_error_is_at_the_front_door():
    assert set(errors.__all__) <= set(threadloom.__all__)
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__ and not name.startswith("_")
    }
    assert defined == set(errors.__all__)


def test_nothing_else_is_public_at_the_front_door():
    public = {
        name for name, value in vars(threadloom).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(threadloom.__all__)


def test_a_star_takes_what_all_names():
    names: dict[str, object] = {}
    exec("from threadloom import *", names)  # noqa: S102 - a star is allowed in no function
    assert set(names) - {"__builtins__"} == set(threadloom.__all__)


def test_everything_public_is_described():
    for name in threadloom.__all__:
        assert inspect.getdoc(getattr(threadloom, name)), name


def test_the_package_imports_no_extra_and_no_test_tool():
    modules = modules_after("import threadloom")
    assert "threadloom.stores.memory" in modules
    assert not modules & {*EXTRAS, *TEST_TOOLS}


def test_what_is_rarely_needed_is_imported_when_it_is():
    assert "threadloom.stores.files.check" not in modules_after("import threadloom")


def test_a_manual_clock_needs_no_test_tool():
    modules = modules_after("from threadloom.testing import ManualClock; ManualClock()")
    assert not modules & ({*EXTRAS, *TEST_TOOLS} - {"threadloom.testing"})


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = threadloom.testing.nonsense
