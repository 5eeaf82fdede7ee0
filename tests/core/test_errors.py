"""The tree of errors is the one that is drawn, and each error is a sentence with values."""

import errno
import inspect
import re

import pytest

from threadloom import errors

CLASSES = {name: getattr(errors, name) for name in errors.__all__}

# Each error as it is raised, and the attributes that carry its values.
EXAMPLES = [
    (errors.InvalidIdError("../etc"), {"value": "../etc"}),
    (errors.InvalidCursorError("msg_1", "messages of the thread"), {"cursor": "msg_1"}),
    (errors.AssistantNotFoundError("a"), {"assistant_id": "a"}),
    (errors.ThreadNotFoundError("t"), {"thread_id": "t"}),
    (errors.MessageNotFoundError("t", "m"), {"thread_id": "t", "message_id": "m"}),
    (errors.RunNotFoundError("t", "r"), {"thread_id": "t", "run_id": "r"}),
    (errors.RunStepNotFoundError("r", "s"), {"run_id": "r", "step_id": "s"}),
    (errors.AssistantAlreadyExistsError("a"), {"assistant_id": "a"}),
    (errors.ThreadAlreadyExistsError("t"), {"thread_id": "t"}),
    (errors.RunAlreadyExistsError("t", "r"), {"thread_id": "t", "run_id": "r"}),
    (errors.RunStepAlreadyExistsError("r", "s"), {"run_id": "r", "step_id": "s"}),
    (errors.ActiveRunError("t", "r"), {"thread_id": "t", "run_id": "r"}),
    (errors.RunInTerminalStateError("r", "failed"), {"run_id": "r", "status": "failed"}),
    (
        errors.InvalidTransitionError("r", "cancelling", "failed", "cancelled"),
        {"run_id": "r", "status": "cancelling", "asked": "failed"},
    ),
    (errors.ToolOutputsRefusedError("r", "expired"), {"run_id": "r", "status": "expired"}),
    (errors.IdempotencyKeyReusedError("k"), {"key": "k"}),
    (errors.LeaseLostError("r", "w"), {"run_id": "r", "worker_id": "w"}),
    (errors.SerializationError("a/b.json", "it is empty"), {"where": "a/b.json", "reason": "it is empty"}),
    (errors.SerializationError("a", "not JSON", offset=7), {"where": "a", "offset": 7}),
    (
        errors.StoreIOError("read a thread", PermissionError(errno.EACCES, "Permission denied", "a/meta.json")),
        {"errno": errno.EACCES, "where": "a/meta.json"},
    ),
    (errors.StoreIOError("write", OSError("odd")), {"errno": None, "where": None}),
    (errors.StoreIOError("commit", ValueError("odd"), where="thread t"), {"errno": None, "where": "thread t"}),
    (errors.StoreClosedError(), {}),
]


def drawn_parents():
    """Return the parent of each error in the drawing of the module's docstring."""
    parents: dict[str, str | None] = {}
    branch: list[str] = []
    for line in (inspect.getdoc(errors) or "").splitlines():
        found = re.match(r"^([\s│├└─]*)([A-Za-z]+Error)\b", line)
        if found:
            depth = len(found[1]) // 4 - 1
            branch = [*branch[:depth], found[2]]
            parents[found[2]] = branch[-2] if len(branch) > 1 else None
    return parents


def test_the_tree_is_the_one_that_is_drawn():
    parents = drawn_parents()
    assert set(parents) == set(CLASSES)
    assert parents.pop("ThreadloomError") is None
    for name, parent in parents.items():
        assert CLASSES[name].__bases__[0] is CLASSES[parent], name


def test_the_builtin_errors_catch_what_they_should():
    assert issubclass(errors.InvalidInputError, ValueError)
    assert issubclass(errors.NotFoundError, LookupError)
    assert not issubclass(errors.StoreError, OSError)


def test_every_error_that_takes_values_has_an_example():
    with_values = {cls for cls in CLASSES.values() if "__init__" in vars(cls)}
    assert with_values == {type(error) for error, _ in EXAMPLES}


@pytest.mark.parametrize(("error", "values"), EXAMPLES, ids=[repr(error)[:40] for error, _ in EXAMPLES])
def test_an_error_is_one_sentence_and_carries_its_values(error, values):
    text = str(error)
    assert text[0].isupper() or text.startswith(("'", "a"))
    assert text.endswith(".")
    assert "\n" not in text
    for name, value in values.items():
        assert getattr(error, name) == value
        if isinstance(value, str):
            assert value in text


def test_a_long_value_is_shortened_in_the_sentence_and_whole_in_the_attribute():
    error = errors.InvalidIdError("x" * 100_000)
    assert len(str(error)) < 250
    assert error.value == "x" * 100_000


@pytest.mark.parametrize("cls", CLASSES.values())
def test_every_error_has_a_docstring_and_the_root(cls):
    assert inspect.getdoc(cls)
    assert issubclass(cls, errors.ThreadloomError)
