"""What a store refuses to keep, and that what it keeps is its own."""

import math
from typing import Any

import attrs
import pytest

from threadloom import (
    Assistant,
    Checkpoint,
    InvalidInputError,
    Lease,
    Message,
    MessageDelta,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunWrite,
    TextContent,
    Thread,
    TruncationStrategy,
    UnknownObject,
    Usage,
    validation,
)

SURROGATE = "a lone surrogate: \ud83d"
LEASE = Lease(thread_id="t", run_id="r", worker_id="w", token="0", attempt=1)  # noqa: S106 - no password
RUN = attrs.evolve(Run.new("t", model="any"), id="r")
STEP = RunStep.tool_calls(thread_id="t", run_id="r")

KEPT: dict[str, tuple[Any, Any]] = {
    "assistant": (Assistant.new(model="any"), validation.owned_assistant),
    "thread": (Thread.new(), validation.owned_thread),
    "message": (Message.user("t", "hi"), lambda message: validation.owned_message("t", message)),
    "run": (RUN, lambda run: validation.owned_run("t", run)),
    "step": (STEP, lambda step: validation.owned_step("t", "r", step)),
    "work": (RunWrite(), lambda work: validation.owned_work(LEASE, work)),
}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("kind", "field", "bad"),
    [
        ("assistant", "name", SURROGATE),
        ("assistant", "model", None),
        ("assistant", "model", 7),
        ("assistant", "created_at", "today"),
        ("assistant", "created_at", True),
        ("assistant", "created_at", 2**64),
        ("assistant", "temperature", math.nan),
        ("assistant", "temperature", True),
        ("assistant", "top_p", math.inf),
        ("assistant", "tools", ({"a": {1: 2}},)),
        ("assistant", "tools", "tools"),
        ("assistant", "tools", ("tool",)),
        ("assistant", "tool_resources", {"a": -(2**63) - 1}),
        ("assistant", "tool_resources", {SURROGATE: 1}),
        ("assistant", "tool_resources", {"a": [SURROGATE]}),
        ("assistant", "tool_resources", {"a": object()}),
        ("assistant", "tool_resources", {"a": {1, 2}}),
        ("assistant", "tool_resources", {"a": deep(500)}),
        ("assistant", "response_format", 7),
        ("thread", "tenant", 7),
        ("message", "role", "user"),
        ("message", "content", "hi"),
        ("message", "content", ("hi",)),
        ("message", "content", (TextContent(SURROGATE),)),
        ("message", "content", (TextContent("hi", ({"a": math.nan},)),)),
        ("message", "content", (UnknownObject({"type": SURROGATE}),)),
        ("message", "attachments", ({"a": math.nan},)),
        ("message", "status", "completed"),
        ("run", "instructions", SURROGATE),
        ("run", "status", "queued"),
        ("run", "parallel_tool_calls", 1),
        ("run", "max_prompt_tokens", "many"),
        ("run", "usage", {"total_tokens": 1}),
        ("run", "usage", Usage("1", 2, 3)),  # type: ignore[arg-type]
        ("run", "truncation_strategy", TruncationStrategy(type=7)),  # type: ignore[arg-type]
        ("run", "last_error", RunError("code", SURROGATE)),
        ("step", "step_details", "details"),
        ("step", "step_details", UnknownObject({"a": math.nan})),
        ("work", "items", (7,)),
        ("work", "items", (MessageDelta("m", SURROGATE),)),
        ("work", "items", (MessageDelta("m", 7),)),  # type: ignore[arg-type]
        ("work", "items", (Checkpoint("name", math.nan),)),
        ("work", "items", (Checkpoint(7, 1),)),  # type: ignore[arg-type]
        ("work", "status", "completed"),
        ("work", "error", RunError(SURROGATE, "text")),
        ("work", "usage", 7),
        ("work", "retry_at", 1.5),
    ],
)
def test_what_cannot_be_kept_is_refused(kind, field, bad):
    model, owned = KEPT[kind]
    with pytest.raises(InvalidInputError):
        owned(attrs.evolve(model, **{field: bad}))


@pytest.mark.parametrize("kind", KEPT)
def test_what_is_of_another_kind_is_refused(kind):
    with pytest.raises(InvalidInputError):
        KEPT[kind][1]("something else")


@pytest.mark.parametrize("kind", KEPT)
def test_a_model_is_kept_as_it_is(kind):
    model, owned = KEPT[kind]
    assert owned(model) == model


def test_what_is_kept_is_a_copy():
    mapping: dict[str, Any] = {"a": [{"b": (1, 2)}]}
    tools: Any = [mapping]
    owned = validation.owned_run("t", attrs.evolve(RUN, tools=tools, tool_resources=mapping, metadata={"k": "v"}))
    mapping["a"].append("more")
    assert owned.tools == ({"a": [{"b": [1, 2]}]},)
    assert owned.tool_resources == {"a": [{"b": [1, 2]}]}


def test_texts_and_numbers_of_subclasses_become_plain():
    owned = validation.owned_assistant(Assistant.new(model=RunStatus.QUEUED, temperature=1))
    assert type(owned.model) is str
    assert (owned.model, owned.temperature) == ("queued", 1)
