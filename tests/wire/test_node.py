"""OpenAI's official client for Node sees the same wire as those for Python."""

from __future__ import annotations

import time
from typing import Any

from tests.support.wire_server import serving
from tests.wire.expectation import SEEN, missing
from tests.wire.orders import BEGUN, ENDED, Order, carried_out, spoken
from tests.wire.programs import node_flows, rest
from threadloom import MemoryStore
from threadloom.testing import ManualClock


def in_node(order: Order, run: str = "run_1") -> Order:
    """Return what Node's helper tells of the same events: a delta before what it adds to a text, and the run last."""
    told: Order = []
    for seen in order:
        match seen, told:
            case ["message delta", _], [*_, ["text delta", *_]]:
                told.insert(-1, seen)
            case ["end"], _:
                status = next(name for name in reversed(told) if isinstance(name, str)).removeprefix("run.")
                told += [["run", run, status], seen]
            case _:
                told.append(seen)
    return told


def some(flow: str, *names: str, **more: Any) -> dict[str, Any]:
    """Return what both kinds of client are to see of a flow, but for its order."""
    return {name: SEEN[flow][name] for name in names} | more


LOOKED: Order = [
    "created",
    *BEGUN,
    *carried_out("step_1", "Oslo", [["tool call created", "call_1"]]),
    *carried_out("step_2", "Rome", [["tool call created", "call_2"]]),
    *spoken("step_3", "msg_1", "rain "),
    *ENDED,
]

SEEN_IN_NODE: dict[str, Any] = {
    "create": {
        "made": ["Guide", {"a": "b"}, "hello", {"c": "d"}],
        "gone": [[f"{kind}.deleted", True] for kind in ("thread.message", "thread", "assistant")],
        "then": missing("No thread found with id 'thread_1'."),
    },
    "poll": some("poll", "outcome", usage=SEEN["poll"]["run"]["usage"]),
    "stream": {
        "order": in_node(SEEN["stream"]["order"]),
        "final": ["run_1", "completed", ["one two three "], [["step_1", "completed"]]],
    },
    "stream_of_events": {"order": in_node(LOOKED)},
    "tools": some("tools", "status", "action", "one is missing", "outcome"),
    "tools_in_a_stream": some(
        "tools_in_a_stream",
        "outcome",
        before=in_node(SEEN["tools_in_a_stream"]["before"]),
        after=in_node(SEEN["tools_in_a_stream"]["after"]),
    ),
    "cancel_in_a_stream": some(
        "cancel_in_a_stream", "said", "outcome", order=in_node(SEEN["cancel_in_a_stream"]["order"])
    ),
    "cancel_while_waiting_for_tools": some("cancel_while_waiting_for_tools", "status", "outcome", "again"),
    "expiry": some("expiry", "said", "outcome", order=in_node(SEEN["expiry"]["order"])),
    "failure": {
        asked: seen | {"order": in_node(seen["order"], f"run_{number}")}
        for number, (asked, seen) in enumerate(SEEN["failure"].items(), 1)
        if "order" in seen
    },
    "pages": some("pages", "up", "down", "sizes"),
    "race": SEEN["race"],
}


async def test_nodes_official_client_sees_the_same_wire():
    async with serving(MemoryStore(clock=ManualClock(time.time_ns()))) as url, node_flows(url) as client:
        assert await rest(client) == SEEN_IN_NODE
