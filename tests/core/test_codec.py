"""Models to records and back: nothing is lost, nothing is guessed, and what is damaged says where."""

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadloom import codec
from threadloom.errors import InvalidInputError, SerializationError
from threadloom.events import Checkpoint, EventType, MessageDelta, RunEvent, StepDelta
from threadloom.models import (
    Assistant,
    FunctionCall,
    ImageFileContent,
    ImageUrlContent,
    IncompleteDetails,
    Message,
    MessageCreation,
    MessageRole,
    MessageStatus,
    RefusalContent,
    RequiredAction,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunStepType,
    TextContent,
    Thread,
    ToolCall,
    ToolCalls,
    TruncationStrategy,
    UnknownObject,
    Usage,
)
from threadloom.records import Lease, RunRecord

PATH = "data/thread_1/meta.json"

text = st.text(max_size=8)
whole = st.integers(-(2**53), 2**53)
fraction = st.floats(allow_nan=False, allow_infinity=False)
json_value = st.recursive(
    st.none() | st.booleans() | whole | fraction | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
json_object = st.dictionaries(text, json_value, max_size=3)


def maybe(strategy):
    return st.none() | strategy


def tuples(strategy):
    return st.lists(strategy, max_size=3).map(tuple)


def unknown(*known):
    """Return objects of a type that is none of the ``known``, without the keys by which those are told."""
    kind = text.filter(lambda name: name not in known)
    rest = json_object.map(lambda data: {key: value for key, value in data.items() if key not in {"id", *known}})
    return st.builds(lambda name, data: UnknownObject(data | {"type": name}), kind, rest)


function_calls = st.builds(FunctionCall, name=text, arguments=text, output=maybe(text))
tool_calls = st.builds(ToolCall, id=text, function=function_calls)
contents = st.one_of(
    st.builds(TextContent, text, tuples(json_object)),
    st.builds(ImageFileContent, text, maybe(text)),
    st.builds(ImageUrlContent, text, maybe(text)),
    st.builds(RefusalContent, text),
    unknown("text", "image_file", "image_url", "refusal"),
)
details = st.one_of(
    st.builds(MessageCreation, text),
    st.builds(ToolCalls, tuples(tool_calls | unknown("function"))),
    unknown("message_creation", "tool_calls", "message_id"),
)
errors = st.builds(RunError, text, text)
usages = st.builds(Usage, whole, whole, whole)
assistants = st.builds(
    Assistant,
    id=text,
    created_at=whole,
    model=text,
    name=maybe(text),
    description=maybe(text),
    instructions=maybe(text),
    tools=tuples(json_object),
    tool_resources=maybe(json_object),
    metadata=json_object,
    temperature=maybe(fraction),
    top_p=maybe(fraction | whole),
    response_format=maybe(text | json_object),
    reasoning_effort=maybe(text),
    tenant=maybe(text),
)
threads = st.builds(
    Thread, id=text, created_at=whole, metadata=json_object, tool_resources=maybe(json_object), tenant=maybe(text)
)
messages = st.builds(
    Message,
    id=text,
    created_at=whole,
    thread_id=text,
    role=st.sampled_from(MessageRole),
    content=tuples(contents),
    status=st.sampled_from(MessageStatus),
    assistant_id=maybe(text),
    run_id=maybe(text),
    attachments=tuples(json_object),
    metadata=json_object,
    completed_at=maybe(whole),
    incomplete_at=maybe(whole),
    incomplete_details=maybe(st.builds(IncompleteDetails, text)),
)
runs = st.builds(
    Run,
    id=text,
    created_at=whole,
    thread_id=text,
    status=st.sampled_from(RunStatus),
    model=text,
    assistant_id=text,
    instructions=text,
    tools=tuples(json_object),
    metadata=json_object,
    required_action=maybe(st.builds(RequiredAction, tuples(tool_calls))),
    last_error=maybe(errors),
    incomplete_details=maybe(st.builds(IncompleteDetails, text)),
    expires_at=maybe(whole),
    started_at=maybe(whole),
    cancelled_at=maybe(whole),
    failed_at=maybe(whole),
    completed_at=maybe(whole),
    usage=maybe(usages),
    temperature=maybe(fraction),
    top_p=maybe(fraction | whole),
    max_prompt_tokens=maybe(whole),
    max_completion_tokens=maybe(whole),
    truncation_strategy=maybe(st.builds(TruncationStrategy, type=text, last_messages=maybe(whole))),
    tool_choice=maybe(text | json_object),
    parallel_tool_calls=st.booleans(),
    response_format=maybe(text | json_object),
    reasoning_effort=maybe(text),
    sequence=maybe(whole),
    attempt=whole,
    turn=whole,
    retry_at=maybe(whole),
    messages_before=maybe(whole),
    anew_from=maybe(whole),
    tool_resources=maybe(json_object),
    expires_after_seconds=maybe(whole),
    spent=maybe(usages),
    is_rolled_back=st.booleans(),
)
steps = st.builds(
    RunStep,
    id=text,
    created_at=whole,
    run_id=text,
    thread_id=text,
    type=st.sampled_from(RunStepType),
    status=st.sampled_from(RunStepStatus),
    step_details=maybe(details),
    assistant_id=text,
    last_error=maybe(errors),
    expired_at=maybe(whole),
    cancelled_at=maybe(whole),
    failed_at=maybe(whole),
    completed_at=maybe(whole),
    metadata=json_object,
    usage=maybe(usages),
    sequence=maybe(whole),
    turn=maybe(whole),
    position=maybe(whole),
)
records = runs.flatmap(
    lambda run: st.builds(
        RunRecord,
        st.just(run),
        maybe(
            st.builds(
                Lease,
                thread_id=st.just(run.thread_id),
                run_id=st.just(run.id),
                worker_id=text,
                token=text,
                attempt=whole,
            )
        ),
    )
)


def data_of(kind):
    """Return what an event of a kind is about."""
    if kind is EventType.STEP_DELTA:
        return st.builds(StepDelta, text, whole, tool_calls)
    if kind is EventType.MESSAGE_DELTA:
        return st.builds(MessageDelta, text, text)
    if kind is EventType.CHECKPOINT:
        return st.builds(Checkpoint, text, json_value)
    if kind.startswith("thread.run.step."):
        return steps
    return runs if kind.startswith("thread.run.") else messages


events = st.sampled_from(EventType).flatmap(
    lambda kind: st.builds(RunEvent, whole, st.just(kind), whole, data_of(kind))
)


@given(st.one_of(assistants, threads, messages, runs, steps, records, events))
def test_what_is_written_is_read_as_it_was(value):
    record = codec.to_record(value)
    assert codec.decode(codec.dump(record), type(value), PATH) == value
    assert codec.decode(codec.dump_line(record), type(value), PATH) == value


@given(st.one_of(assistants, threads, messages, runs, steps))
def test_a_line_is_one_line(value):
    line = codec.dump_line(codec.to_record(value))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1


@given(
    st.one_of(assistants, threads, messages, runs, steps),
    st.dictionaries(st.text(min_size=1).map("x-".__add__), json_value),
)
def test_keys_that_we_do_not_know_hinder_no_reading(value, foreign):
    assert codec.from_record(codec.to_record(value) | foreign, type(value), PATH) == value


@given(st.one_of(assistants, threads, messages, runs, steps))
def test_a_null_counts_as_absent(value):
    record = codec.to_record(value)
    nulls = {field.name: None for field in attrs.fields(type(value)) if field.name not in record}
    nulls.pop("type", None)
    assert codec.from_record(nulls | record, type(value), PATH) == value


def test_records_have_the_keys_of_the_seed_and_leave_out_what_is_absent():
    message = attrs.evolve(Message.assistant("thread_1", "Hello", run_id="run_1"), id="msg_1", created_at=5)
    assert codec.to_record(attrs.evolve(message, completed_at=None)) == {
        "id": "msg_1",
        "object": "thread.message",
        "created_at": 5,
        "thread_id": "thread_1",
        "role": "assistant",
        "content": [{"type": "text", "text": {"value": "Hello", "annotations": []}}],
        "status": "completed",
        "run_id": "run_1",
    }
    run = Run(
        id="run_1",
        created_at=5,
        thread_id="thread_1",
        status=RunStatus.FAILED,
        model="any",
        last_error=RunError("server_error", "Broken."),
    )
    assert codec.to_record(run) == {
        "id": "run_1",
        "object": "thread.run",
        "created_at": 5,
        "thread_id": "thread_1",
        "status": "failed",
        "model": "any",
        "assistant_id": "",
        "last_error": {"code": "server_error", "message": "Broken."},
    }
    step = RunStep(
        id="step_1",
        created_at=5,
        run_id="run_1",
        thread_id="thread_1",
        type=RunStepType.MESSAGE_CREATION,
        status=RunStepStatus.FAILED,
        step_details=MessageCreation("msg_1"),
        last_error=RunError("server_error", "Broken."),
        failed_at=6,
    )
    assert codec.to_record(step) == {
        "id": "step_1",
        "object": "thread.run.step",
        "created_at": 5,
        "run_id": "run_1",
        "thread_id": "thread_1",
        "step_type": "message_creation",
        "status": "failed",
        "step_details": {
            "message_id": "msg_1",
            "type": "message_creation",
            "message_creation": {"message_id": "msg_1"},
        },
        "failed_at": 6,
        "error": "Broken.",
        "last_error": {"code": "server_error", "message": "Broken."},
    }
    assert codec.to_record(Thread(id="thread_1", created_at=5)) == {
        "id": "thread_1",
        "object": "thread",
        "created_at": 5,
        "metadata": {},
    }
    assert codec.to_record(Assistant(id="asst_1", created_at=5, model="any")) == {
        "id": "asst_1",
        "object": "assistant",
        "created_at": 5,
        "model": "any",
        "metadata": {},
    }


def test_records_of_the_seed_are_read():
    thread = {"id": "thread_1", "object": "thread", "created_at": 1, "metadata": {"restart": True, "n": 3}}
    assert codec.from_record(thread, Thread, PATH).metadata == {"restart": True, "n": 3}
    message = codec.from_record(
        {
            "id": "msg_1",
            "object": "thread.message",
            "created_at": 1,
            "thread_id": "thread_1",
            "role": "user",
            "content": [{"type": "text", "text": {"value": "Hi", "annotations": []}}],
            "run_id": None,
        },
        Message,
        PATH,
    )
    assert (message.text, message.status, message.completed_at) == ("Hi", "completed", None)
    run = codec.from_record(
        {
            "id": "run_1",
            "object": "thread.run",
            "created_at": 1,
            "thread_id": "thread_1",
            "status": "failed",
            "model": "gpt-4o",
            "last_error": {"code": "worker_dead", "message": "gone"},
        },
        Run,
        PATH,
    )
    assert (run.status, run.last_error, run.sequence) == ("failed", RunError("worker_dead", "gone"), None)
    step = codec.from_record(
        {
            "id": "step_1",
            "object": "thread.run.step",
            "run_id": "run_1",
            "thread_id": "thread_1",
            "step_type": "message_creation",
            "status": "failed",
            "created_at": 1,
            "completed_at": None,
            "failed_at": 2,
            "error": "something broke",
            "step_details": {"message_id": "msg_1"},
        },
        RunStep,
        PATH,
    )
    assert step.type == "message_creation"
    assert step.step_details == MessageCreation("msg_1")
    assert step.last_error == RunError("server_error", "something broke")


@pytest.mark.parametrize(
    ("block", "content"),
    [
        ({"type": "text", "text": "plain"}, TextContent("plain")),
        ({"type": "text", "text": {"value": "v", "annotations": None}}, TextContent("v")),
        ({"type": "text", "text": {"value": "v"}}, TextContent("v")),
        ({"type": "image_url", "image_url": {"url": "u", "detail": None}}, ImageUrlContent("u")),
        ({"type": "audio", "x": [1]}, UnknownObject({"type": "audio", "x": [1]})),
    ],
)
def test_content_of_others_is_read(block, content):
    record = codec.to_record(Message.user("thread_1", "")) | {"content": [block]}
    assert codec.from_record(record, Message, PATH).content == (content,)


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ({"message_creation": {"message_id": "m"}, "type": "message_creation"}, MessageCreation("m")),
        ({"tool_calls": [], "type": "tool_calls"}, ToolCalls(())),
        ({"type": "thinking"}, UnknownObject({"type": "thinking"})),
        (
            {
                "type": "tool_calls",
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "", "output": None}}],
            },
            ToolCalls((ToolCall(id="c", function=FunctionCall(name="f", arguments="")),)),
        ),
    ],
)
def test_details_of_others_are_read(raw, read):
    step = RunStep.tool_calls(thread_id="thread_1", run_id="run_1")
    record = codec.to_record(step) | {"step_details": raw}
    assert codec.from_record(record, RunStep, PATH).step_details == read


ASSISTANT = {"id": "a", "created_at": 1, "model": "any"}
THREAD = {"id": "t", "created_at": 1, "metadata": {}}
MESSAGE = {"id": "m", "created_at": 1, "thread_id": "t", "role": "user", "content": []}
RUN = {"id": "r", "created_at": 1, "thread_id": "t", "status": "queued", "model": "any"}
STEP = {"id": "s", "created_at": 1, "run_id": "r", "thread_id": "t", "step_type": "tool_calls", "status": "completed"}
EVENT = {"number": 1, "event": "thread.run.queued", "created_at": 1, "data": RUN}
PICTURE = {"type": "image_url", "image_url": {"url": "u", "detail": 1}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "", "output": 7}}

# A record that is good, what is wrong in it, and the word that the error has to say.
DAMAGED = [
    (Assistant, ASSISTANT, {"model": None}, "model"),
    (Assistant, ASSISTANT, {"name": 1}, "name"),
    (Assistant, ASSISTANT, {"tools": 7}, "tools"),
    (Assistant, ASSISTANT, {"temperature": "hot"}, "temperature"),
    (Assistant, ASSISTANT, {"tenant": 1}, "tenant"),
    (Thread, THREAD, {"tenant": 1}, "tenant"),
    (Thread, THREAD, {"id": 1}, "id"),
    (Thread, THREAD, {"id": None}, "id"),
    (Thread, THREAD, {"created_at": "1"}, "created_at"),
    (Thread, THREAD, {"created_at": 1.0}, "created_at"),
    (Thread, THREAD, {"created_at": True}, "created_at"),
    (Message, MESSAGE, {"role": "system"}, "role"),
    (Message, MESSAGE, {"status": "done"}, "status"),
    (Message, MESSAGE, {"content": None}, "content"),
    (Message, MESSAGE, {"content": "text"}, "content"),
    (Message, MESSAGE, {"content": [{"type": "text", "text": {"value": 1}}]}, "content"),
    (Message, MESSAGE, {"content": [{"type": "text", "text": {"value": "", "annotations": "abc"}}]}, "content"),
    (Message, MESSAGE, {"content": [{"type": "refusal", "refusal": 1}]}, "content"),
    (Message, MESSAGE, {"content": [{"text": "no type"}]}, "content"),
    (Message, MESSAGE, {"content": [PICTURE]}, "content"),
    (Message, MESSAGE, {"run_id": 7}, "run_id"),
    (Message, MESSAGE, {"incomplete_details": {"reason": 1}}, "reason"),
    (Message, MESSAGE, {"incomplete_details": {}}, "reason"),
    (Run, RUN, {"status": "running"}, "status"),
    (Run, RUN, {"status": None}, "status"),
    (Run, RUN, {"model": 4}, "model"),
    (Run, RUN, {"parallel_tool_calls": 1}, "parallel_tool_calls"),
    (Run, RUN, {"expires_after_seconds": 1.5}, "expires_after_seconds"),
    (Run, RUN, {"is_rolled_back": "yes"}, "is_rolled_back"),
    (Run, RUN, {"spent": {"prompt_tokens": "1"}}, "prompt_tokens"),
    (Run, RUN, {"temperature": "0.5"}, "temperature"),
    (Run, RUN, {"expires_at": "soon"}, "expires_at"),
    (Run, RUN, {"attempt": "2"}, "attempt"),
    (Run, RUN, {"last_error": {"code": 5, "message": "x"}}, "code"),
    (Run, RUN, {"last_error": "text"}, "last_error"),
    (Run, RUN, {"usage": {"prompt_tokens": "1"}}, "prompt_tokens"),
    (Run, RUN, {"required_action": {"type": "submit_tool_outputs"}}, "required_action"),
    (Run, RUN, {"truncation_strategy": {"last_messages": "3"}}, "last_messages"),
    (RunRecord, RUN, {"status": 1}, "status"),
    (RunStep, STEP, {"step_type": "thinking"}, "type"),
    (RunStep, STEP, {"step_type": None}, "type"),
    (RunStep, STEP, {"step_details": 5}, "step_details"),
    (RunStep, STEP, {"step_details": {"tool_calls": [5]}}, "step_details"),
    (RunStep, STEP, {"step_details": {"tool_calls": [CALL]}}, "step_details"),
    (RunEvent, EVENT, {"number": "1"}, "expected int, not '1'"),
    (RunEvent, EVENT, {"event": "thread.run.exploded"}, "exploded"),
    (RunEvent, EVENT, {"data": {}}, "id"),
    (RunEvent, EVENT, {"data": None}, "expected an object"),
]


@pytest.mark.parametrize(("model", "good", "wrong", "word"), DAMAGED)
def test_a_damaged_record_is_an_error_that_names_the_file_and_the_key(model, good, wrong, word):
    codec.from_record(good, model, PATH)
    with pytest.raises(SerializationError) as caught:
        codec.from_record(good | wrong, model, PATH, offset=99)
    assert (caught.value.where, caught.value.offset) == (PATH, 99)
    assert str(caught.value).startswith("data/thread_1/meta.json, byte 99 is damaged: ")
    assert word in caught.value.reason


@pytest.mark.parametrize("model", [Assistant, Thread, Message, Run, RunRecord, RunStep, RunEvent])
@pytest.mark.parametrize("record", [None, [], "text", 1, {}], ids=repr)
def test_what_is_no_record_at_all_is_damage(model, record):
    with pytest.raises(SerializationError):
        codec.from_record(record, model, PATH)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "not JSON"),
        (b'{"id": "\xc3', "not JSON"),
        (b"\0\0\0\0", "not JSON"),
        (b'{"id": NaN}', "not JSON"),
        (b'{"id": "\xff"}', "not JSON"),
        (b'{"id": "a"} {"id": "b"}', "not JSON"),
    ],
)
def test_what_is_not_json_is_damage(data, reason):
    with pytest.raises(SerializationError, match=reason):
        codec.decode(data, Thread, PATH)


@pytest.mark.parametrize(
    "value",
    [{"text": "\ud800"}, {"an object": NotImplemented}, {"bytes": b""}, {1: "key"}, {"large": 2**64}, {"set": {1}}],
    ids=repr,
)
def test_what_cannot_be_json_is_refused(value):
    for write in (codec.dump, codec.dump_line):
        with pytest.raises(InvalidInputError):
            write({"id": "t", "metadata": value})


def test_a_lease_that_makes_no_sense_is_none():
    record = codec.from_record(RUN | {"lease": {"worker_id": "w"}}, RunRecord, PATH)
    assert record.lease is None


@given(runs, runs, st.dictionaries(st.text(min_size=1).map("x-".__add__), json_value))
def test_a_rewritten_record_says_the_new_and_keeps_what_is_foreign(old, new, foreign):
    raw = codec.to_record(old) | foreign
    written = codec.patched(raw, codec.to_record(old), codec.to_record(new))
    assert codec.from_record(written, Run, PATH) == new
    assert {key: written[key] for key in foreign} == foreign


def test_a_rewritten_record_keeps_what_is_foreign_within_what_has_not_changed():
    raw = RUN | {
        "created_at": 1,
        "last_error": {"code": "server_error", "message": "x", "trace": ["deep"]},
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cached_tokens": 4},
        "tools": [{"type": "function", "x": {"y": 1}}],
        "x-new": {"nested": {"kept": True}},
        "expires_at": None,
    }
    run = codec.from_record(raw, Run, PATH)
    changed = attrs.evolve(run, status=RunStatus.COMPLETED, completed_at=9)
    written = codec.patched(raw, codec.to_record(run), codec.to_record(changed))
    assert {key: written[key] for key in raw if key != "status"} == {key: raw[key] for key in raw if key != "status"}
    assert (written["status"], written["completed_at"]) == ("completed", 9)


def test_a_rewritten_record_drops_what_has_gone():
    run = codec.from_record(RUN | {"last_error": {"code": "c", "message": "m"}, "retry_at": 5}, Run, PATH)
    raw = codec.to_record(run) | {"x": 1}
    written = codec.patched(
        raw, codec.to_record(run), codec.to_record(attrs.evolve(run, last_error=None, retry_at=None))
    )
    assert "last_error" not in written
    assert "retry_at" not in written
    assert written["x"] == 1


def test_a_step_of_the_seed_that_is_rewritten_is_still_one():
    raw = STEP | {"status": "in_progress", "step_details": {"message_id": "msg_1", "x": 1}, "note": "seed"}
    step = codec.from_record(raw, RunStep, PATH)
    done = attrs.evolve(step, status=RunStepStatus.COMPLETED, completed_at=3)
    written = codec.patched(raw, codec.to_record(step), codec.to_record(done))
    assert written["step_details"] == {"message_id": "msg_1", "x": 1}
    assert (written["status"], written["completed_at"], written["note"]) == ("completed", 3, "seed")


def test_small_records_are_for_people_to_read():
    dumped = codec.dump(codec.to_record(Thread(id="t", created_at=1)))
    assert dumped == b'{\n  "id": "t",\n  "object": "thread",\n  "created_at": 1,\n  "metadata": {}\n}\n'
    assert orjson.loads(dumped)["id"] == "t"
