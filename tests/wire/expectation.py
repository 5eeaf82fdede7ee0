"""What every official client is to see of the flows in ``flows.py``, whatever its version, flavour and store."""

from __future__ import annotations

from typing import Any

from tests.wire.orders import BEGUN, ENDED, Order, call_asked_for, carried_out, closed, opened, said, spoken

_OSLO, _ROME = '{"city":"Oslo"}', '{"city":"Rome"}'
_WEATHER = f"{_OSLO}: 0 degrees, {_ROME}: 1 degrees"
_LOOKED = ["assistant", "completed", "looking "]


def _outcome(status: str, steps: Order, messages: Order, **more: Any) -> dict[str, Any]:
    ended_at = [] if status in {"expired", "incomplete"} else [f"{status}_at"]  # a run has no such moments
    return {
        "status": status,
        "error": None,
        "incomplete": None,
        "moments": sorted(["created_at", "started_at", *ended_at]),
        "steps": steps,
        "messages": messages,
    } | more


def _refused(message: str, *, param: str | None = None) -> Order:
    return ["BadRequestError", 400, None, param, "invalid_request_error", message]


def missing(message: str) -> Order:
    return ["NotFoundError", 404, None, None, "invalid_request_error", message]


def _unexpected(*got: str) -> Order:
    return _refused(f"Expected tool outputs for call_ids ['call_1', 'call_2'], got {list(got)}.")


_WHOLE = [["message_creation", "completed"]]
_BOTH_CALLS = [
    {"id": f"call_{number}", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    for number, arguments in enumerate((_OSLO, _ROME), 1)
]
_WITH_TOOLS = _outcome(
    "completed",
    [["message_creation", "completed"], ["tool_calls", "completed"], ["message_creation", "completed"]],
    [["user", "completed", "tools"], _LOOKED, ["assistant", "completed", _WEATHER]],
)
_LOOK_EVENTS = [
    ["thread.created", "thread_1"],
    ["thread.run.created", "run_1"],
    ["thread.run.queued", "run_1"],
    ["thread.run.in_progress", "run_1"],
    *(
        [f"thread.run.step.{name}", step]
        for step in ("step_1", "step_2")
        for name in ("created", "in_progress", "delta", "delta", "completed")
    ),
    ["thread.run.step.created", "step_3"],
    ["thread.run.step.in_progress", "step_3"],
    *([f"thread.message.{name}", "msg_1"] for name in ("created", "in_progress", "delta", "completed")),
    ["thread.run.step.completed", "step_3"],
    ["thread.run.completed", "run_1"],
]
_TWO_WORDS = [
    *(f"thread.{name}" for name in BEGUN),
    *(f"thread.run.step.{name}" for name in ("created", "in_progress")),
    *(f"thread.message.{name}" for name in ("created", "in_progress", "delta", "delta", "completed")),
    *(f"thread.run.{name}" for name in ("step.completed", "completed")),
]

SEEN: dict[str, Any] = {
    "assistants": {
        "made": {
            "id": "asst_1",
            "object": "assistant",
            "model": "any",
            "name": "Guide",
            "description": None,
            "instructions": "Be kind.",
            "metadata": {"a": "b"},
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "description": None,
                        "parameters": {"type": "object", "properties": {}},
                        "strict": None,
                    },
                }
            ],
            "tool_resources": None,
            "response_format": "auto",
            "temperature": None,
            "top_p": None,
        },
        "changed": [True, "Sage", "Old.", "Be kind."],
        "listed": True,
        "gone": ["assistant.deleted", True],
        "then": missing("No assistant found with id 'asst_1'."),
        "run": missing("No assistant found with id 'asst_1'."),
    },
    "objects": {
        "thread": {"id": "thread_1", "object": "thread", "metadata": {"a": "b"}, "tool_resources": None},
        "metadata": [{"c": "d"}, {"g": "h"}, {}],
        "message": {
            "id": "msg_1",
            "object": "thread.message",
            "thread_id": "thread_1",
            "assistant_id": None,
            "run_id": None,
            "role": "user",
            "status": "completed",
            "content": [
                {"type": "text", "text": {"value": "look", "annotations": []}},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
            ],
            "attachments": [],
            "metadata": {"e": "f"},
            "incomplete_at": None,
            "incomplete_details": None,
        },
        "same": [True, True],
        "gone": ["thread.message.deleted", True, "thread.deleted", True],
        "left": [[], False],
        "then": missing("No thread found with id 'thread_1'."),
        "no id": _refused(
            "Invalid 'thread_id': 'thread one'. Expected 1 to 128 ASCII letters, digits, '_' and '-', "
            "starting with a letter or a digit.",
            param="thread_id",
        ),
    },
    "poll": {
        "run": {
            "id": "run_1",
            "object": "thread.run",
            "assistant_id": "asst_1",
            "thread_id": "thread_1",
            "status": "completed",
            "model": "any",
            "instructions": "Be kind.\n\nBe brief.",
            "tools": [],
            "metadata": {},
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            "parallel_tool_calls": True,
            "response_format": "auto",
            "tool_choice": "auto",
            "truncation_strategy": {"type": "auto"},
        },
        "outcome": _outcome(
            "completed", _WHOLE, [["user", "completed", "echo hello"], ["assistant", "completed", "You said: hello"]]
        ),
        "again": _outcome(
            "completed", _WHOLE, [["user", "completed", "echo again"], ["assistant", "completed", "You said: again"]]
        ),
        "headers": [True, "req_"],
        "of the run": ["You said: hello"],
    },
    "stream": {
        "order": [*BEGUN, *spoken("step_1", "msg_1", "one ", "two ", "three "), *ENDED],
        "final": ["run_1", "completed", ["one two three "], ["step_1"]],
        "texts": ["four ", "five "],
        "outcome": _outcome(
            "completed",
            _WHOLE,
            [["user", "completed", "stream one two three"], ["assistant", "completed", "one two three "]],
        ),
    },
    "stream_of_events": {
        "events": _LOOK_EVENTS,
        "order": [
            "created",
            *BEGUN,
            *carried_out("step_4", "Oslo", [["tool call created", "call_1"]]),
            *carried_out("step_5", "Rome", [["tool call delta", "", ""]]),  # to the helper the same call, of index 0
            *spoken("step_6", "msg_2", "rain ")[:-1],
            ["tool call done", "weather", "Rome"],
            ["run step done", "step_6", "completed"],
            "run.completed",
            ["tool call done", "weather", "Rome"],
            ["end"],
        ],
    },
    "tools": {
        "status": "requires_action",
        "action": {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": _BOTH_CALLS}},
        "one is missing": _unexpected("call_1"),
        "one is there twice": _unexpected("call_1", "call_2", "call_1"),
        "one is unknown": _unexpected("call_1", "call_no"),
        "message": _refused("Can't add messages to thread_1 while a run run_1 is active."),
        "run": _refused("Thread thread_1 already has an active run run_1."),
        "outcome": _WITH_TOOLS,
        "too late": _refused('Runs in status "completed" do not accept tool outputs.'),
    },
    "tools_in_a_stream": {
        "before": [
            *BEGUN,
            *spoken("step_1", "msg_1", "looking "),
            "run.step.created",
            ["run step created", "step_2"],
            "run.step.in_progress",
            *call_asked_for("call_1", _OSLO, []),
            *call_asked_for("call_2", _ROME, [["tool call done", "weather", _OSLO]]),
            "run.requires_action",
            ["tool call done", "weather", _ROME],
            ["end"],
        ],
        "after": [
            "run.step.completed",
            ["run step done", "step_2", "completed"],
            "run.queued",
            "run.in_progress",
            *spoken("step_3", "msg_2", _WEATHER),
            *ENDED,
        ],
        "outcome": _WITH_TOOLS,
    },
    "cancel_in_a_stream": {
        "order": [
            *BEGUN,
            *opened("step_1", "msg_1"),
            *said("msg_1", "one "),
            "run.cancelling",
            *closed("step_1", "msg_1", "one ", message_is="incomplete", step_is="cancelled"),
            "run.cancelled",
            ["end"],
        ],
        "said": "cancelling",
        "outcome": _outcome(
            "cancelled",
            [["message_creation", "cancelled"]],
            [["user", "completed", "stand one"], ["assistant", "incomplete", "one "]],
        ),
    },
    "cancel_while_waiting_for_tools": {
        "status": "cancelled",
        "outcome": _outcome(
            "cancelled",
            [["message_creation", "completed"], ["tool_calls", "cancelled"]],
            [["user", "completed", "tools"], _LOOKED],
        ),
        "again": _refused("Cannot cancel run with status 'cancelled'."),
        "outputs": _refused('Runs in status "cancelled" do not accept tool outputs.'),
        "next": "requires_action",
    },
    "expiry": {
        "order": [
            *BEGUN,
            *spoken("step_1", "msg_1", "one ", message_is="incomplete", step_is="expired"),
            "run.expired",
            ["end"],
        ],
        "said": {},
        "outcome": _outcome(
            "expired",
            [["message_creation", "expired"]],
            [["user", "completed", "stand one"], ["assistant", "incomplete", "one "]],
        ),
        "while it waits": [
            "requires_action",
            "expired",
            _outcome(
                "expired",
                [["message_creation", "completed"], ["tool_calls", "expired"]],
                [["user", "completed", "tools"], _LOOKED],
            ),
        ],
    },
    "failure": {
        "fail half": {
            "order": [
                *BEGUN,
                *spoken("step_1", "msg_1", "half", message_is="incomplete", step_is="failed"),
                "run.failed",
                ["end"],
            ],
            "outcome": _outcome(
                "failed",
                [["message_creation", "failed"]],
                [["user", "completed", "fail half"], ["assistant", "incomplete", "half"]],
                error=["rate_limit_exceeded", "The model is tired."],
            ),
        },
        "raise secrets": {
            "order": [*BEGUN, "run.failed", ["end"]],
            "outcome": _outcome(
                "failed",
                [],
                [["user", "completed", "raise secrets"]],
                error=["server_error", "The handler raised RuntimeError."],
            ),
        },
        "incomplete half": {
            "order": [
                *BEGUN,
                *spoken("step_2", "msg_2", "half", message_is="incomplete", step_is="cancelled"),
                "run.incomplete",
                ["end"],
            ],
            "outcome": _outcome(
                "incomplete",
                [["message_creation", "cancelled"]],
                [["user", "completed", "incomplete half"], ["assistant", "incomplete", "half"]],
                incomplete="max_completion_tokens",
            ),
        },
        "limit": {
            "tokens": 2,
            "outcome": _outcome(
                "incomplete",
                [],
                [["user", "completed", "echo much"]],
                incomplete="max_completion_tokens",
            ),
        },
    },
    "pages": {
        "up": "0 1 2 3 4 5 6 7 8 9 10",
        "down": "10 9 8 7 6 5 4 3 2 1 0",
        "sizes": [4, 4, 3],
        "from the fifth": "5 6 7 8 9 10",
        "before the fifth": ["1 2 3", True],
        "before the fifth, down": ["7 6 5", True],
        "between": ["3 4", False],
        "too many": _refused("Invalid 'limit': expected an integer from 1 to 100, not '101'.", param="limit"),
        "no such cursor": _refused("'msg_none' is not a valid cursor: it is not among the messages of the thread."),
    },
    "race": {
        "winners": ["run_1"],
        "runs": ["run_1"],
        "losers": [_refused("Thread thread_1 already has an active run run_1.")] * 7,
    },
    "read_again": {"frames": [*_TWO_WORDS, "done"], "numbers": True, "rest": True, "typed": _TWO_WORDS},
}


def _frames_of(step: str, message: str, *words: str) -> Order:
    return [
        *([f"thread.run.step.{name}", step] for name in ("created", "in_progress")),
        *([f"thread.message.{name}", message] for name in ("created", "in_progress")),
        *(["thread.message.delta", message, word] for word in words),
    ]


# Of the stream whose server was killed, and of what came at the next one: what was begun ends, and is begun anew.
KILLED: dict[str, Any] = {
    "broken": True,
    "before": [
        *([f"thread.{name}", "run_1"] for name in BEGUN),
        *_frames_of("step_1", "msg_1", "begun "),
        ["thread.message.completed", "msg_1"],
        ["thread.run.step.completed", "step_1"],
        *_frames_of("step_2", "msg_2", "one ", "two "),
    ],
    "after": [
        ["thread.message.incomplete", "msg_2"],
        ["thread.run.step.failed", "step_2"],
        *([f"thread.run.{name}", "run_1"] for name in ("queued", "in_progress")),
        *_frames_of("step_3", "msg_3", "one ", "two ", "three "),
        ["thread.message.completed", "msg_3"],
        ["thread.run.step.completed", "step_3"],
        ["thread.run.completed", "run_1"],
        ["done", "[DONE]"],
    ],
    "each once": True,
    "outcome": _outcome(
        "completed",
        [["message_creation", "completed"], ["message_creation", "failed"], ["message_creation", "completed"]],
        [
            ["user", "completed", "survive one two three"],
            ["assistant", "completed", "begun "],
            ["assistant", "completed", "one two three "],
        ],
    ),
}
