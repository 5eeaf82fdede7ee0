"""Whatever is asked, be it what OpenAI's description of the API allows or not, is answered as that says."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

HERE = Path(__file__).parent
SCHEMA = schemathesis.openapi.from_path(HERE / "data" / "assistants_openapi.yaml")
OPERATIONS: list[APIOperation] = [found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)]
CASES = 46  # of each operation and of each kind: what is allowed, and what is not
LONGEST_LINE = 8_000  # what is longer aiohttp refuses itself, before anybody knows which application is asked
CHECKS: Any = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


class Server:
    """A server in a process of its own, and objects in it that a case may be about."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.assistant_id = self.post("/assistants", model="any")["id"]
        self.run = self.run_of("look")
        self.path = f"/threads/{self.run['thread_id']}"
        self.message_id = self.get(f"{self.path}/messages")["data"][0]["id"]
        self.step_id = self.get(f"{self.path}/runs/{self.run['id']}/steps")["data"][0]["id"]

    def get(self, path: str) -> Any:
        return self.session.get(f"{self.url}{path}", timeout=60).json()

    def post(self, path: str, **body: Any) -> Any:
        return self.session.post(f"{self.url}{path}", json=body, timeout=60).json()

    def run_of(self, text: str) -> Any:
        """Return a run that has ended, or waits for outputs: its stream has been read to the end."""
        thread = self.post("/threads", messages=[{"role": "user", "content": text}])
        path, body = f"/threads/{thread['id']}/runs", {"assistant_id": self.assistant_id, "stream": True}
        assert self.session.post(f"{self.url}{path}", json=body, timeout=60).text.endswith("[DONE]\n\n")
        return self.get(path)["data"][0]

    def make_real(self, case: Case) -> None:
        """Let the case be about what is there, and about what is there for it alone where it uses that up."""
        run = self.run
        if case.operation.label.endswith(("/cancel", "/submit_tool_outputs")):
            run = self.run_of("tools")
        elif case.operation.label in {"DELETE /threads/{thread_id}", "POST /threads/{thread_id}/runs"}:
            run = run | {"thread_id": self.post("/threads")["id"]}
        ids = {
            "assistant_id": self.assistant_id,
            "thread_id": run["thread_id"],
            "run_id": run["id"],
            "message_id": self.message_id,
            "step_id": self.step_id,
        }
        if case.operation.label.startswith("DELETE /assistants"):
            ids["assistant_id"] = self.post("/assistants", model="any")["id"]
        if case.operation.label.endswith("messages/{message_id}") and case.method == "DELETE":
            ids["message_id"] = self.post(f"{self.path}/messages", role="user", content="soon gone")["id"]
        case.path_parameters = {name: ids[name] for name in case.path_parameters or {}}
        if isinstance(case.body, dict) and "assistant_id" in case.body:
            case.body["assistant_id"] = self.assistant_id
        if isinstance(case.body, dict) and "tool_outputs" in case.body:
            calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
            case.body["tool_outputs"] = [{"tool_call_id": call["id"], "output": "rain"} for call in calls]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.wire_server"], cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield Server(process.stdout.readline().strip())
        finally:
            process.kill()


def test_there_are_at_least_two_thousand_cases_of_all_twenty_three_operations():
    assert len(OPERATIONS) == 23
    assert len(OPERATIONS) * len(GenerationMode) * CASES >= 2_000


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_an_operation_answers_as_it_is_described_whatever_it_is_asked(operation, server):
    statuses: Counter[int] = Counter()
    for mode in GenerationMode:

        @settings(
            max_examples=CASES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), is_real=st.booleans())
        def ask(case: Case, is_real: bool) -> None:
            if is_real:
                server.make_real(case)
            answer = case.call(base_url=server.url, session=server.session, timeout=60)
            assume(len(answer.request.url or "") < LONGEST_LINE)
            statuses[answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS)

        ask()
    assert statuses.total() >= len(GenerationMode) * CASES
    assert statuses[200]
