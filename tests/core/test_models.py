"""The models: OpenAI's words, constructors for every day, and the limits on metadata."""

import time
from datetime import timedelta

import attrs
import pytest

from threadloom import models
from threadloom.errors import InvalidMetadataError
from threadloom.models import (
    Assistant,
    Content,
    FunctionCall,
    ImageFileContent,
    Message,
    MessageCreation,
    MessageRole,
    MessageStatus,
    RefusalContent,
    Run,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunStepType,
    TextContent,
    Thread,
    ToolCall,
    ToolCalls,
    TruncationStrategy,
    Usage,
    check_metadata,
)

MODELS = [cls for name in models.__all__ if attrs.has(cls := getattr(models, name))]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            RunStatus,
            "queued in_progress requires_action cancelling cancelled failed completed incomplete expired",
        ),
        (RunStepStatus, "in_progress cancelled failed completed expired"),
        (MessageStatus, "in_progress incomplete completed"),
        (MessageRole, "user assistant"),
        (RunStepType, "message_creation tool_calls"),
    ],
)
def test_the_words_are_those_of_openai(words, expected):
    assert [word.value for word in words] == expected.split()


@pytest.mark.parametrize("status", RunStatus)
def test_five_statuses_are_terminal(status):
    assert status.is_terminal is (status in {"completed", "failed", "incomplete", "expired", "cancelled"})


@pytest.mark.parametrize("model", MODELS)
def test_models_are_frozen_and_have_slots(model):
    assert not hasattr(model, "__dict__") or "__slots__" in vars(model)
    some = object.__new__(model)
    for field in attrs.fields(model):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(some, field.name, "changed")


# The fields of the Assistants API, as its description lists them; ours come on top.
FIELDS = {
    Assistant: """id created_at name description model instructions tools tool_resources metadata temperature top_p
        response_format""",
    Thread: "id created_at metadata tool_resources",
    Message: """id created_at thread_id status incomplete_details completed_at incomplete_at role content assistant_id
        run_id attachments metadata""",
    Run: """id created_at thread_id assistant_id status required_action last_error expires_at started_at cancelled_at
        failed_at completed_at incomplete_details model instructions tools metadata usage temperature top_p
        max_prompt_tokens max_completion_tokens truncation_strategy tool_choice parallel_tool_calls response_format""",
    RunStep: """id created_at assistant_id thread_id run_id type status step_details last_error expired_at cancelled_at
        failed_at completed_at metadata usage""",
}
OUR_OWN = {
    Assistant: "reasoning_effort tenant",
    Thread: "tenant",
    Run: """sequence attempt turn retry_at messages_before anew_from reasoning_effort tool_resources
        expires_after_seconds spent is_rolled_back""",
    RunStep: "sequence turn position",
}


@pytest.mark.parametrize("model", FIELDS)
def test_a_model_has_every_field_of_the_api(model):
    names = {field.name for field in attrs.fields(model)}
    assert names == {*FIELDS[model].split(), *OUR_OWN.get(model, "").split()}


def test_a_new_assistant():
    before = int(time.time())
    tool = {"type": "file_search"}
    assistant = Assistant.new(model="any", name="Barista", tools=(tool for _ in range(2)), tenant="acme")
    assert assistant.id.startswith("asst_")
    assert before <= assistant.created_at <= int(time.time())
    assert (assistant.model, assistant.name, assistant.tools) == ("any", "Barista", (tool, tool))
    assert (assistant.tenant, assistant.metadata, assistant.instructions) == ("acme", {}, None)
    assert Assistant.new(model="any", id="asst_of_old_code").id == "asst_of_old_code"


def test_a_new_thread():
    before = int(time.time())
    thread = Thread.new(metadata={"k": "v"}, tool_resources={"file_search": {}})
    assert thread.id.startswith("thread_")
    assert before <= thread.created_at <= int(time.time())
    assert (thread.metadata, thread.tool_resources) == ({"k": "v"}, {"file_search": {}})
    assert Thread.new(id="mine").id == "mine"
    assert (Thread.new().metadata, Thread.new().tenant) == ({}, None)
    assert Thread.new(tenant="acme").tenant == "acme"


def test_a_users_message():
    message = Message.user("thread_1", "Hello", metadata={"k": "v"}, attachments=[{"file_id": "f"}])
    assert message.id.startswith("msg_")
    assert (message.role, message.status, message.thread_id) == ("user", "completed", "thread_1")
    assert message.content == (TextContent("Hello"),)
    assert (message.metadata, message.attachments) == ({"k": "v"}, ({"file_id": "f"},))
    assert (message.run_id, message.completed_at) == (None, message.created_at)


def test_an_assistants_message():
    message = Message.assistant("thread_1", "Hi", run_id="run_1", assistant_id="asst_1", metadata={"k": "v"})
    assert (message.role, message.run_id, message.assistant_id) == ("assistant", "run_1", "asst_1")
    assert (message.text, message.metadata) == ("Hi", {"k": "v"})


def test_the_text_of_a_message_is_its_text_blocks_joined_by_nothing():
    blocks: list[Content] = [TextContent("one"), ImageFileContent("file_1"), TextContent(" two"), RefusalContent("no")]
    assert Message.user("thread_1", blocks).text == "one two"
    assert Message.user("thread_1", []).text == ""
    assert Message.user("thread_1", (block for block in blocks)).content == tuple(blocks)


def test_a_new_run():
    run = Run.new(
        "thread_1",
        model="any",
        tools=[{"type": "file_search"}],
        truncation_strategy=TruncationStrategy(type="last_messages", last_messages=2),
        temperature=0.2,
    )
    assert run.id.startswith("run_")
    assert (run.status, run.model, run.attempt, run.parallel_tool_calls) == ("queued", "any", 1, True)
    assert run.tools == ({"type": "file_search"},)
    assert (run.sequence, run.expires_at, run.started_at, run.spent) == (None, None, None, None)
    assert (run.expires_after_seconds, run.is_rolled_back) == (None, False)
    assert Run.new("thread_1", model="any", status=RunStatus.COMPLETED).status == "completed"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (timedelta(minutes=10), 600),
        (timedelta(seconds=1), 1),
        (timedelta(seconds=1, microseconds=1), 2),
        (timedelta(microseconds=1), 1),
    ],
)
def test_a_time_to_expire_after_is_rounded_up_to_whole_seconds(given, seconds):
    run = Run.new("thread_1", model="any", expires_after=given)
    assert (run.expires_after_seconds, run.expires_at) == (seconds, None)


def test_new_steps():
    step = RunStep.message_creation(thread_id="thread_1", run_id="run_1")
    assert step.id.startswith("step_")
    assert (step.type, step.status, step.step_details) == ("message_creation", "in_progress", None)
    named = RunStep.message_creation(thread_id="thread_1", run_id="run_1", message_id="msg_1")
    assert named.step_details == MessageCreation("msg_1")
    call = ToolCall(id="call_1", function=FunctionCall(name="brew", arguments="{}"))
    step = RunStep.tool_calls(
        thread_id="thread_1", run_id="run_1", calls=[call, FunctionCall(name="serve", arguments="not json")]
    )
    assert step.type == "tool_calls"
    assert isinstance(step.step_details, ToolCalls)
    first, second = step.step_details.tool_calls
    assert first is call
    assert isinstance(second, ToolCall)
    assert second.id.startswith("call_")
    assert (second.function.name, second.function.arguments, second.function.output) == ("serve", "not json", None)
    assert RunStep.tool_calls(thread_id="thread_1", run_id="run_1").step_details == ToolCalls(())


def test_usage_adds_up():
    assert Usage(1, 2, 3) + Usage(10, 20, 30) == Usage(11, 22, 33)
    assert sum([Usage(1, 1, 2)] * 3, Usage()) == Usage(3, 3, 6)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"k": "v"},
        {"": ""},
        {"ä" * 64: "☕" * 512},
        {str(n): "v" for n in range(16)},
    ],
    ids=["none", "empty", "one", "empty_texts", "longest", "most"],
)
def test_metadata_within_the_limits_is_copied(metadata):
    checked = check_metadata(metadata)
    assert checked == (metadata or {})
    assert checked is not metadata


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({str(n): "v" for n in range(17)}, "17 pairs"),
        ({"k" * 65: "v"}, "65 characters"),
        ({"k": "v" * 513}, "513 characters"),
        ({"k": 1}, "not int"),
        ({"k": None}, "not NoneType"),
        ({"k": True}, "not bool"),
        ({"k": ["v"]}, "not list"),
        ({1: "v"}, "not int"),
        ([("k", "v")], "not list"),
        ("k", "not str"),
        (7, "not int"),
    ],
)
def test_metadata_that_breaks_the_limits_is_refused(metadata, said):
    with pytest.raises(InvalidMetadataError, match=said):
        check_metadata(metadata)


@pytest.mark.parametrize(
    "make",
    [
        lambda metadata: Assistant.new(model="any", metadata=metadata),
        lambda metadata: Thread.new(metadata=metadata),
        lambda metadata: Message.user("thread_1", "", metadata=metadata),
        lambda metadata: Message.assistant("thread_1", "", metadata=metadata),
        lambda metadata: Run.new("thread_1", model="any", metadata=metadata),
    ],
    ids=["an_assistant", "thread", "user", "assistant", "run"],
)
def test_constructors_check_metadata_and_keep_a_copy(make):
    with pytest.raises(InvalidMetadataError):
        make({"k": 1})
    metadata = {"k": "v"}
    made = make(metadata)
    metadata["k"] = "changed"
    assert made.metadata == {"k": "v"}


def test_models_with_the_same_fields_are_equal():
    thread = Thread.new()
    assert thread == attrs.evolve(thread)
    assert thread != attrs.evolve(thread, created_at=0)
