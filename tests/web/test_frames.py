"""How a run's events become frames: their order, and their bytes."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
import pytest

from tests.web.stream_fixtures import names, numbers
from threadloom import (
    FunctionCall,
    Message,
    MessageCreation,
    MessageRole,
    MessageStatus,
    Run,
    RunEvent,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunStepType,
    Thread,
    ToolCall,
    ToolCalls,
)
from threadloom.events import EventType, MessageDelta, StepDelta
from threadloom.models import ImageFileContent, IncompleteDetails, TextContent, UnknownObject
from threadloom.web._frames import FrameWriter, error_frame, thread_frame

RUN = Run(id="run_1", created_at=1, thread_id="thread_1", status=RunStatus.QUEUED, model="m", assistant_id="asst_1")
CALLS = (
    ToolCall(id="call_1", function=FunctionCall(name="look", arguments='{"at": "sky"}')),
    ToolCall(id="call_2", function=FunctionCall(name="ask", arguments="")),
)


def run(status: str, **fields: Any) -> Run:
    return attrs.evolve(RUN, status=RunStatus(status), **fields)


def message_step(name: str, status: str = "in_progress") -> RunStep:
    return step(name, status, RunStepType.MESSAGE_CREATION, MessageCreation(f"msg_{name}"))


def tools_step(name: str, status: str = "in_progress", calls: tuple[Any, ...] = CALLS) -> RunStep:
    return step(name, status, RunStepType.TOOL_CALLS, ToolCalls(calls))


def step(name: str, status: str, kind: RunStepType, details: Any) -> RunStep:
    return RunStep(
        id=f"step_{name}",
        created_at=1,
        run_id="run_1",
        thread_id="thread_1",
        type=kind,
        status=RunStepStatus(status),
        step_details=details,
        completed_at=2 if status == "completed" else None,
    )


def message(name: str, status: str = "in_progress", *content: Any) -> Message:
    return Message(
        id=f"msg_{name}",
        created_at=1,
        thread_id="thread_1",
        role=MessageRole.ASSISTANT,
        content=content,
        status=MessageStatus(status),
        run_id="run_1",
        completed_at=2 if status == "completed" else None,
        incomplete_details=IncompleteDetails("run_failed") if status == "incomplete" else None,
    )


def piece(name: str, text: str) -> MessageDelta:
    return MessageDelta(f"msg_{name}", text)


def told(*happened: tuple[str, Any]) -> list[RunEvent]:
    """Return events, numbered from 1, each given by its name without ``thread.`` and its data."""
    return [
        RunEvent(number, EventType(f"thread.{name}"), 5, data) for number, (name, data) in enumerate(happened, start=1)
    ]


def opened(what: RunStep | Message) -> list[tuple[str, Any]]:
    kind = "run.step" if isinstance(what, RunStep) else "message"
    return [(f"{kind}.created", what), (f"{kind}.in_progress", what)]


def written(events: list[RunEvent]) -> bytes:
    writer = FrameWriter()
    return b"".join(map(writer.frames, events))


def data_of(frames: bytes, name: str) -> list[Any]:
    found = re.findall(rf"^event: thread\.{re.escape(name)}\ndata: (.*)$", frames.decode(), re.MULTILINE)
    return [json.loads(data) for data in found]


HELLO = told(
    ("run.created", RUN),
    ("run.queued", RUN),
    ("run.in_progress", run("in_progress")),
    *opened(message_step("1")),
    *opened(message("1")),
    ("message.delta", piece("1", "Hel")),
    ("message.delta", piece("1", "lo")),
    ("message.completed", message("1", "completed", TextContent("Hello"))),
    ("run.step.completed", message_step("1", "completed")),
    ("run.completed", run("completed")),
)
TOOLS = told(
    *opened(tools_step("1")),
    ("run.step.delta", StepDelta("step_1", 0, CALLS[0])),
    ("run.step.delta", StepDelta("step_1", 1, CALLS[1])),
    ("run.requires_action", run("requires_action")),
)
BESIDE = told(
    *opened(tools_step("1")),
    *opened(message_step("2")),
    *opened(tools_step("3")),
    *opened(message("2")),
    ("message.delta", piece("2", "a")),
    ("message.completed", message("2", "completed", TextContent("a"))),
    ("run.step.completed", message_step("2", "completed")),
    ("run.step.completed", tools_step("1", "completed")),
    ("run.step.cancelled", tools_step("3", "cancelled")),
    ("run.cancelled", run("cancelled")),
)
AGAIN = told(
    *opened(message_step("1")),
    *opened(message("1")),
    ("message.delta", piece("1", "ha")),
    ("message.incomplete", message("1", "incomplete", TextContent("ha"))),
    ("run.step.failed", message_step("1", "failed")),
    ("run.queued", RUN),
    ("run.in_progress", run("in_progress")),
    *opened(message_step("2")),
    *opened(message("2")),
    ("message.incomplete", message("2", "incomplete")),
    ("run.step.failed", message_step("2", "failed")),
    ("run.failed", run("failed")),
)


class TestOrder:
    def test_every_event_of_a_message_is_one_frame_with_its_number(self):
        assert names(written(HELLO)) == [event.type.removeprefix("thread.") for event in HELLO]
        assert numbers(written(HELLO)) == [event.number for event in HELLO]

    def test_calls_are_told_after_the_step_that_is_opened_without_them(self):
        frames = written(TOOLS)
        assert names(frames) == [
            "run.step.created",
            "run.step.in_progress",
            *["run.step.delta"] * 4,
            "run.requires_action",
        ]
        for name in ("created", "in_progress"):
            (opening,) = data_of(frames, f"run.step.{name}")
            assert opening["step_details"] == {"type": "tool_calls", "tool_calls": []}

    def test_a_call_is_one_delta_with_its_name_and_one_with_its_arguments(self):
        deltas = data_of(written(TOOLS), "run.step.delta")
        assert {(delta["id"], delta["object"]) for delta in deltas} == {("step_1", "thread.run.step.delta")}
        assert [delta["delta"]["step_details"]["tool_calls"] for delta in deltas] == [
            [{"index": 0, "id": "call_1", "type": "function", "function": begun("look")}],
            [{"index": 0, "type": "function", "function": {"arguments": '{"at": "sky"}'}}],
            [{"index": 1, "id": "call_2", "type": "function", "function": begun("ask")}],
            [{"index": 1, "type": "function", "function": {"arguments": ""}}],
        ]

    def test_calls_of_a_step_that_somebody_drives_by_hand_are_told_too(self):
        by_hand = told(*opened(tools_step("1", calls=CALLS[:1])), ("run.step.in_progress", tools_step("1")))
        assert names(written(by_hand)) == ["run.step.created", "run.step.in_progress", *["run.step.delta"] * 4]

    def test_an_open_step_with_other_details_is_not_told_to_be_in_progress_again(self):
        events = told(*opened(message_step("1")), ("run.step.in_progress", message_step("1")))
        assert names(written(events)) == ["run.step.created", "run.step.in_progress"]

    def test_a_call_of_another_kind_is_told_as_it_is(self):
        call = UnknownObject({"id": "call_9", "type": "code_interpreter", "code_interpreter": {"input": "1+1"}})
        (delta,) = data_of(written(told(*opened(tools_step("1", calls=(call,))))), "run.step.delta")
        assert delta["delta"]["step_details"]["tool_calls"] == [{**call.data, "index": 0}]

    def test_a_step_opened_beside_another_waits_until_that_one_has_ended(self):
        assert names(written(BESIDE)) == [
            *["run.step.created", "run.step.in_progress", *["run.step.delta"] * 4],
            *["message.created", "message.in_progress", "message.delta", "message.completed"],
            *["run.step.completed", "run.step.created", "run.step.in_progress", "run.step.completed"],
            *["run.step.created", "run.step.in_progress", *["run.step.delta"] * 4, "run.step.cancelled"],
            "run.cancelled",
        ]
        created = [data["id"] for data in data_of(written(BESIDE), "run.step.created")]
        completed = [data["id"] for data in data_of(written(BESIDE), "run.step.completed")]
        assert (created, completed) == (["step_1", "step_2", "step_3"], ["step_1", "step_2"])
        assert data_of(written(BESIDE), "run.step.created")[1]["completed_at"] is None

    def test_a_step_of_an_earlier_stream_only_ends(self):
        events = told(
            ("run.step.delta", StepDelta("step_1", 0, CALLS[0])),
            ("run.step.completed", tools_step("1", "completed")),
            ("run.queued", RUN),
        )
        assert names(written(events)) == ["run.step.completed", "run.queued"]

    def test_what_has_ended_is_not_told_of_again(self):
        done = [("run.step.completed", tools_step("1", "completed")), ("message.completed", message("1", "completed"))]
        again = [("run.step.in_progress", tools_step("1")), ("run.step.failed", tools_step("1", "failed"))]
        assert written(told(*done, *again, *opened(message("1")), *done)) == written(told(*done))

    def test_an_attempt_that_is_done_again_ends_what_it_had_begun(self):
        assert names(written(AGAIN)) == [event.type.removeprefix("thread.") for event in AGAIN]


class TestMessages:
    def test_only_the_first_piece_of_a_text_brings_annotations(self):
        deltas = data_of(written(HELLO), "message.delta")
        assert deltas == [
            {
                "id": "msg_1",
                "object": "thread.message.delta",
                "delta": {"content": [text_piece("Hel", annotations=[])]},
            },
            {"id": "msg_1", "object": "thread.message.delta", "delta": {"content": [text_piece("lo")]}},
        ]

    def test_a_message_that_came_whole_is_opened_and_has_a_delta(self):
        frames = written(told(("message.completed", message("1", "completed", TextContent("whole")))))
        assert names(frames) == ["message.created", "message.in_progress", "message.delta", "message.completed"]
        assert numbers(frames) == [1]
        (created,) = data_of(frames, "message.created")
        assert (created["status"], created["content"], created["completed_at"]) == ("in_progress", [], None)

    def test_a_message_without_text_has_no_delta(self):
        frames = written(told(("message.completed", message("1", "completed", ImageFileContent("file-1")))))
        assert names(frames) == ["message.created", "message.in_progress", "message.completed"]

    def test_a_message_that_ended_before_a_word_has_an_empty_text(self):
        first, second = data_of(written(AGAIN), "message.incomplete")
        assert [block["text"]["value"] for block in first["content"]] == ["ha"]
        assert [block["text"]["value"] for block in second["content"]] == [""]

    def test_one_whose_end_was_lost_is_ended_before_the_next(self):
        frames = written(told(*opened(message("1")), *opened(message("2"))))
        opening = ["message.created", "message.in_progress"]
        assert names(frames) == [*opening, "message.incomplete", *opening]
        assert data_of(frames, "message.incomplete")[0]["incomplete_at"] == 5

    def test_a_piece_of_one_that_the_stream_has_not_opened_is_left_out(self):
        assert written(told(("message.delta", piece("1", "x")))) == b""


class TestBytes:
    def test_a_frame_is_a_name_one_line_of_ascii_and_a_number(self):
        text = "ü \u2028\x85\n\r\n\U0001f600 \udcff"
        frames = written(told(*opened(message("1")), ("message.delta", piece("1", text)))).split(b"\n\n")
        name, data, number = frames[2].split(b"\n")
        assert (name, number) == (b"event: thread.message.delta", b"id: 3")
        assert data.isascii()
        assert json.loads(data.removeprefix(b"data: "))["delta"]["content"][0]["text"]["value"] == text
        assert frames[3:] == [b""]

    def test_only_the_last_frame_of_an_event_has_its_number(self):
        frames = written(TOOLS).split(b"\n\n")[:-1]
        assert [numbers(frame) for frame in frames] == [[1], [], [], [], [], [2], [5]]

    @pytest.mark.parametrize("events", [HELLO, TOOLS, BESIDE, AGAIN], ids=["hello", "tools", "beside", "again"])
    def test_what_follows_a_number_is_the_same_from_wherever_it_is_read(self, events: list[RunEvent]):
        whole = FrameWriter()
        parts = [whole.frames(event) for event in events]
        for known in range(len(events) + 1):
            writer = FrameWriter()
            for event in events[:known]:
                writer.pass_over(event)
            assert [writer.frames(event) for event in events[known:]] == parts[known:]

    def test_a_thread_and_an_error_have_no_number(self):
        assert thread_frame(Thread(id="thread_1", created_at=1)) == (
            b'event: thread.created\ndata: {"id":"thread_1","object":"thread","created_at":1,'
            b'"tool_resources":null,"metadata":{}}\n\n'
        )
        assert error_frame({"error": {"message": "é"}}) == b'event: error\ndata: {"error":{"message":"\\u00e9"}}\n\n'


def begun(name: str) -> dict[str, Any]:
    return {"name": name, "arguments": "", "output": None}


def text_piece(value: str, **more: Any) -> dict[str, Any]:
    return {"index": 0, "type": "text", "text": {"value": value, **more}}
