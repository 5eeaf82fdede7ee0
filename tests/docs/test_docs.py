"""The docs are true: their examples run, the names in them exist, and their tables match the code."""

import ast
import asyncio
import fcntl
import inspect
import json
import os
import re
import subprocess
import sys
import zlib
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import pytest
from aiohttp import web

import threadloom
from threadloom import (
    Assistant,
    ConflictError,
    EventType,
    FileStore,
    FunctionCall,
    IdempotencyKey,
    IncompleteDetails,
    Lease,
    MemoryStore,
    Message,
    MessageCreation,
    MessageRole,
    MessageStatus,
    Page,
    RequiredAction,
    RetryPolicy,
    Run,
    RunContext,
    RunError,
    RunEvent,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunStepType,
    RunWorker,
    RunWrite,
    SerializationError,
    StepDelta,
    TextContent,
    Thread,
    ToolCall,
    TruncationStrategy,
    Usage,
    codec,
)
from threadloom.events import RunLog
from threadloom.records import RunRecord, RunState
from threadloom.rules import run as rules
from threadloom.rules import thread as thread_rules
from threadloom.rules import transaction
from threadloom.stores.files import status_record
from threadloom.stores.files.journal import read_journal
from threadloom.stores.files.status_record import Summary

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "threadloom"
README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
ARCHITECTURE, FORMAT, GUARANTEES, LIFECYCLE, WIRE = (
    ROOT / f"docs/{name}.md" for name in ("architecture", "format", "guarantees", "lifecycle", "wire")
)
PAGES = [README, CHANGELOG, *sorted((ROOT / "docs").glob("*.md"))]
PATIENCE_SECONDS = 30


# What is on a page


def text_of(page, heading=None):
    """Return a page, or what stands below one of its headings, down to the next of that rank."""
    text = page.read_text()
    if heading is None:
        return text
    return re.split(r"\n## ", text.split(f"\n## {heading}\n", 1)[1], maxsplit=1)[0]


def blocks(language, page, heading=None):
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page, heading), re.MULTILINE | re.DOTALL)


def tables(page, heading):
    """Return the tables below a heading, each as its rows, which are dicts of plain text by column."""
    found = []
    for lines in re.findall(r"(?:^\|.*\n)+", text_of(page, heading) + "\n", re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in lines.splitlines())
        found.append([dict(zip((plain(name) for name in header), row, strict=True)) for row in rows])
    return found


def plain(cell):
    return cell.replace("`", "")


def code_in(text):
    return re.findall(r"`([^`\n]+)`", text)


def slug(heading):
    return re.sub(r"[^\w\- ]", "", re.sub(r"&\w+;", "", heading).lower()).replace(" ", "-")


PYTHON = [
    pytest.param(page, block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks("python", page), 1)
]
SCRIPTS = [parameter for parameter in PYTHON if "asyncio.run(" in str(parameter.values[1])]


def block_with(word, page):
    [block] = [block for block in blocks("python", page) if word in block]
    return block


def names_in(block):
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - our own page
    return names


# What is shown runs


def test_the_readme_is_short_and_its_first_example_is_a_script():
    assert len(README.read_text().splitlines()) <= 120
    assert blocks("python", README)[0] == SCRIPTS[0].values[1]


@pytest.mark.parametrize(("page", "script"), SCRIPTS)
def test_a_script_runs_and_prints_what_the_page_says(page, script, tmp_path):
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-W", "error", "script.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout
    assert ran.stdout.strip() in re.sub(r"^    ", "", text_of(page), flags=re.MULTILINE)
    assert (tmp_path / "data" / ".threadloom").is_dir()


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_every_block_compiles_and_imports_existing_names(page, block):
    tree = compile(block, page.name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [(node.module, name.name) for node in imports for name in node.names if "threadloom" in str(node.module)]
    assert ours
    assert [(module, name) for module, name in ours if not hasattr(import_module(str(module)), name)] == []


async def test_the_example_handlers_complete_their_runs():
    shown = [str(parameter.values[1]) for parameter in PYTHON]
    plain_ones = [block for block in shown if "RunContext" in block and not re.search(r"asyncio\.run|aiohttp", block)]
    assert plain_ones
    for block in plain_ones:
        async with MemoryStore() as store, RunWorker(store, names_in(block)["answer"]):
            thread = await store.create_thread(Thread.new())
            run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
            run = await store.wait_for_run(thread.id, run.id)
            if run.status is RunStatus.REQUIRES_ACTION:
                assert "call_tools" in block
                hand_in = names_in(block_with("hand_in", LIFECYCLE))["hand_in"]
                assert (await hand_in(store, run)).status is RunStatus.QUEUED
                run = await store.wait_for_run(thread.id, run.id)
            assert (run.status, run.last_error) == (RunStatus.COMPLETED, None)
            assert [message.text for message in await store.list_messages(thread.id)] == ["It is 19 °C."]


async def test_the_readmes_cancellation_works_from_another_process(tmp_path):
    stopped = asyncio.Event()
    streamed = asyncio.Event()

    async def answer(ctx):
        try:
            async with ctx.message() as message:
                await message.write("half")
                streamed.set()
                await asyncio.Event().wait()
        finally:
            stopped.set()

    async with FileStore(tmp_path / "data") as store, RunWorker(store, answer):
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await streamed.wait()
            script = f"{block_with('def stop', README)}\nimport asyncio, sys\nasyncio.run(stop(*sys.argv[1:]))"
            other = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "error", "-c", script, thread.id, run.id, cwd=tmp_path
            )
            assert await other.wait() == 0
        assert stopped.is_set()
        assert (await store.get_run(thread.id, run.id)).status is RunStatus.CANCELLED
        [message] = await store.list_messages(thread.id)
        assert (message.text, message.status) == ("half", MessageStatus.INCOMPLETE)


@pytest.fixture
def shown_app(tmp_path, monkeypatch):
    """Return the application on the page of the wire, made where no loop runs yet, as by ``web.run_app``."""
    monkeypatch.chdir(tmp_path)
    names = names_in(block_with("def make_app", WIRE)) | names_in(block_with("def bring_assistants", WIRE))
    assert names["make_app"]().router.resources()
    api = names["create_app"](names["FileStore"]("data"), handler=names["answer"])
    api.on_startup.append(names["bring_assistants"])
    app = web.Application()
    app.add_subapp("/v1", api)
    return app


async def test_old_code_works_against_the_example_server(shown_app):
    runner = web.AppRunner(shown_app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        [(_, port)] = runner.addresses
        [change] = blocks("diff", README)
        code = "".join(line[1:] for line in change.splitlines(keepends=True) if not line.startswith("-"))
        assert "127.0.0.1:8000" in code
        script = f"from openai import OpenAI\n{code.replace(':8000', f':{port}')}"
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-c", script, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await client.communicate()
    finally:
        await runner.cleanup()
    assert (client.returncode, said.decode()) == (0, "completed You said: hello\n")


# What is named is there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_has_a_target(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_in_the_text_exists(page, tmp_path):
    named = {"store": FileStore(tmp_path), "FileStore": FileStore, "ctx": RunContext, "page": Page}
    named |= {"RunWorker": RunWorker, "threadloom": threadloom}
    text = text_of(page).replace("threadloom.testing", "testing").replace("threadloom.web", "the web package")
    text = text.replace(EventType.CHECKPOINT, "").replace("store.py", "")
    named["testing"] = import_module("threadloom.testing")
    for name, attribute in re.findall(rf"(?<![\w./])({'|'.join(named)})\.([A-Za-z_]\w*)", text):
        assert hasattr(named[name], attribute), f"{name}.{attribute}"
    for name in re.findall(r"`([A-Z]\w+(?:Error|Store|Worker|Policy|Context|Event|Delta|Step))`", text):
        assert hasattr(threadloom, name), name


def test_every_test_that_a_promise_names_exists():
    tests = "".join(path.read_text() for path in [*SOURCE.glob("testing/*.py"), *ROOT.glob("tests/**/*.py")])
    promises = re.findall(r"^## (G\d) ", text_of(GUARANTEES), re.MULTILINE)
    assert promises == re.findall(r"\* \*\*(G\d) ", inspect.getdoc(threadloom.ThreadStore) or "")
    for section in re.split(r"^## ", text_of(GUARANTEES), flags=re.MULTILINE):
        names = re.findall(r"`(test_\w+)`", section)
        assert names or not section.startswith("G"), section[:20]
        for name in names:
            assert f"def {name}(" in tests, name
            assert not re.match(r"test_g\d_", name) or name[5:7] == section[:2].lower(), name


def test_the_readmes_limitations_still_hold():
    not_here = text_of(README, "Limitations")
    assert "PostgreSQL" in not_here
    assert "vector stores" in not_here
    assert not re.search(r"submit_tool_outputs|checkpoint|check and repair|command line|HTTP", not_here)
    assert find_spec("threadloom.stores.postgres") is None, "it is here now: say so in README.md and docs"


def test_the_table_of_log_messages_is_complete():
    said = [name for row in tables(LIFECYCLE, "Logging")[0] for name in code_in(row["message"])]
    logged = {re.sub(r"\{\w+\}", "%s", name) for name in said}
    first_words = set()
    for path in SOURCE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args:
                is_log = call.func.attr in {"info", "warning", "error", "exception", "log_failure"}
                for part in ast.walk(call.args[0]) if is_log else ():
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        first_words.add(part.value)
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    assert first_words <= logged
    assert [name for name in logged if f'"{name}"' not in source] == []


# docs/architecture.md


def test_the_picture_shows_every_module():
    assert len(ARCHITECTURE.read_text().splitlines()) <= 120
    picture = text_of(ARCHITECTURE, "Where everything is")
    modules = [
        path
        for path in SOURCE.rglob("*.py")
        if not path.name.startswith("_") and path.parent.name not in {"check", "codec"}
    ]
    packages = [path.parent for path in SOURCE.rglob("__init__.py")]
    missing = [path.name for path in modules if not re.search(rf"\b{re.escape(path.name)}", picture)]
    missing += [path.name for path in packages if path.name != "threadloom" and f"{path.name}/" not in picture]
    assert missing == []


async def test_a_write_passes_the_modules_on_the_page(tmp_path, monkeypatch):
    said = re.findall(r"^\d\. `([\w.]+)`", text_of(ARCHITECTURE, "How a write travels"), re.MULTILINE)
    passed: list[str] = []
    plain_write, plain_rule = os.write, thread_rules.append_message

    def stack():
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            yield frame.f_globals["__name__"].removeprefix("threadloom.")
            frame = frame.f_back

    def write(fd, data):
        if b"say this" in data and Path(f"/proc/self/fd/{fd}").readlink().name == "messages.jsonl":
            passed.extend(stack())
        return plain_write(fd, data)

    def rule(view, **arguments):
        passed.extend(["rules.thread", *stack()])
        return plain_rule(view, **arguments)

    async with FileStore(tmp_path, durability="process") as store:
        thread = await store.create_thread(Thread.new())
        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr(thread_rules, "append_message", rule)
        await store.append_message(thread.id, Message.user(thread.id, "say this"))
    assert len(said) <= 8
    ours = {name for name in passed if (SOURCE / name.replace(".", "/")).with_suffix(".py").exists()}
    assert ours == set(said) - {"store", "stores.files.file_backend"}, "those two are left before the hop"


# docs/lifecycle.md: who may do what


async def test_the_table_of_transitions_matches_the_rules():
    [rows] = tables(LIFECYCLE, "Who may do what")
    said = {
        (RunStatus(plain(row["from"])), RunStatus(to)): set(cell.split())
        for row in rows
        for to, cell in row.items()
        if to != "from"
    }
    done = {(old, new): ways(old, new) for old in RunStatus for new in RunStatus}
    async with MemoryStore() as store:
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="any", expires_at=1))
        assert await store.try_claim_run("worker") is None
        done[RunStatus.QUEUED, (await store.get_run(thread.id, run.id)).status].add("W")
    assert said == done


def ways(old, new):
    """Return who can bring a run from one status to the other."""
    run = attrs.evolve(Run.new("thread_x", model="any"), status=old)
    lease = Lease(thread_id=run.thread_id, run_id=run.id, worker_id="worker", token="t", attempt=1)  # noqa: S106
    found = set()
    for record in (RunRecord(run), RunRecord(run, lease)):
        state = RunState(record, RunLog())
        changes = {
            "U": lambda state=state: rules.update_status(state, new, None, now_ns=1),
            "F": lambda state=state: rules.force_status(state, new, None, now_ns=1),
            "C": lambda state=state: rules.request_cancel(state, now_ns=1),
            "S": lambda state=state: rules.submit_tool_outputs(state, (), now_ns=1),
            "W": lambda state=state: rules.write(state, lease, RunWrite(status=new), now_ns=1),
        }
        for letter, change in changes.items():
            try:
                changed = change()
            except ConflictError:
                continue
            if changed is not None and changed.record.run.status is new:
                found.add(letter)
    if rules.is_due(RunRecord(run), now_ns=1):
        state = RunState(RunRecord(run), RunLog())
        claimed = rules.claim(state, worker_id="worker", token="t", liveness_id="", now_ns=1)  # noqa: S106
        found |= {"W"} if claimed.record.run.status is new else set()
    return found


# docs/lifecycle.md: how a handler ends


def cause_in_the_handler(ctx, words):
    if "raises" in words:
        raise ValueError
    if "fail" in words:
        ctx.fail("server_error", "no")
    if "incomplete" in words:
        ctx.incomplete("max_completion_tokens")


async def end(words, status=RunStatus.CANCELLED):
    """Return how a run, its open message and that message's step end where this happens after a word was streamed."""
    streamed = asyncio.Event()

    async def answer(ctx):
        async with ctx.message() as message:
            await message.write("half")
            streamed.set()
            cause_in_the_handler(ctx, words)
            await asyncio.Event().wait()

    options: dict[str, Any] = {"grace": timedelta()}
    if "there is an attempt left" in words:
        options["retry"] = RetryPolicy(first_delay=timedelta(hours=1))
    if "run_timeout" in words:
        options["run_timeout"] = timedelta(milliseconds=20)
    async with MemoryStore() as store:
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
        async with RunWorker(store, answer, **options) as worker, asyncio.timeout(PATIENCE_SECONDS):
            await streamed.wait()
            if "request_cancel" in words:
                await store.request_cancel(thread.id, run.id)
            if "forces" in words:
                await store.force_update_run_status(thread.id, run.id, status)
            if "worker stops" in words:
                await worker.close()
            while (run := await store.get_run(thread.id, run.id)).status in {"in_progress", "cancelling"}:  # noqa: ASYNC110
                await asyncio.sleep(0)
        [step] = await store.list_steps(thread.id, run.id)
        kept = list(await store.list_messages(thread.id))
    reasons = [[str(m.status), m.incomplete_details.reason] for m in kept if m.incomplete_details is not None]
    return run.status, reasons[0] if reasons else [], step.status


async def test_a_run_ends_as_the_table_says():
    rows = tables(LIFECYCLE, "Handlers")[1]
    plain_ends = {}
    for row in rows[:7]:
        status, message, step = await end(row["what happens"])
        assert (status, message, step) == (
            code_in(row["the run"])[0],
            code_in(row["open message"]),
            code_in(row["open steps"])[0],
        ), row
        plain_ends[status] = (status, message, step)
    forced = rows[7]["what happens"]
    for status in (RunStatus.FAILED, RunStatus.INCOMPLETE, RunStatus.CANCELLED, RunStatus.EXPIRED):
        assert await end(forced, status) == plain_ends[status]
    assert await end(forced, RunStatus.COMPLETED) == ("completed", ["incomplete", "run_cancelled"], "completed")
    assert code_in(rows[7]["open message"]) == ["incomplete", "run_cancelled", "completed"]
    assert [row["what happens"] for row in rows[8:]] == ["somebody deletes the thread by force"]


# docs/format.md: every key

ID = {"id": "thread_1", "created_at": 1}
CALL = ToolCall(id="call_1", function=FunctionCall(name="f", arguments="{}", output="1"))
ERROR = RunError("server_error", "no")
METADATA = {"key": "value"}

# Of each model, one with as little as it can have, and one in which every field says something.
LITTLE: dict[type, Any] = {
    Assistant: Assistant(id="asst_1", created_at=1, model="any"),
    Thread: Thread(id="thread_1", created_at=1),
    Message: Message(id="msg_1", created_at=1, thread_id="thread_1", role=MessageRole.USER, content=()),
    Run: Run(id="run_1", created_at=1, thread_id="thread_1", status=RunStatus.QUEUED),
    RunStep: RunStep(
        id="step_1",
        created_at=1,
        run_id="run_1",
        thread_id="thread_1",
        type=RunStepType.TOOL_CALLS,
        status=RunStepStatus.IN_PROGRESS,
    ),
}
FULL: dict[type, Any] = {
    Assistant: attrs.evolve(
        LITTLE[Assistant],
        name="Waiter",
        description="Serves",
        instructions="Be brief",
        tools=({"type": "function"},),
        tool_resources={"code_interpreter": {}},
        metadata=METADATA,
        temperature=0.5,
        top_p=0.5,
        response_format="auto",
        reasoning_effort="low",
        tenant="acme",
    ),
    Thread: attrs.evolve(LITTLE[Thread], metadata=METADATA, tool_resources={"code_interpreter": {}}, tenant="acme"),
    Message: attrs.evolve(
        LITTLE[Message],
        content=(TextContent("hello"),),
        status=MessageStatus.INCOMPLETE,
        assistant_id="asst_1",
        run_id="run_1",
        attachments=({"file_id": "file_1"},),
        metadata=METADATA,
        completed_at=1,
        incomplete_at=1,
        incomplete_details=IncompleteDetails("run_failed"),
    ),
    Run: attrs.evolve(
        LITTLE[Run],
        model="any",
        assistant_id="asst_1",
        instructions="Be brief.",
        tools=({"type": "function"},),
        metadata=METADATA,
        required_action=RequiredAction((CALL,)),
        last_error=ERROR,
        incomplete_details=IncompleteDetails("max_completion_tokens"),
        usage=Usage(1, 1, 2),
        temperature=0.5,
        top_p=0.5,
        truncation_strategy=TruncationStrategy(type="last_messages", last_messages=1),
        tool_choice="auto",
        parallel_tool_calls=False,
        response_format={"type": "json_object"},
        reasoning_effort="low",
        tool_resources={"code_interpreter": {}},
        attempt=2,
        spent=Usage(1, 1, 2),
        is_rolled_back=True,
        **dict.fromkeys(("expires_at", "started_at", "cancelled_at", "failed_at", "completed_at"), 1),
        **dict.fromkeys(("max_prompt_tokens", "max_completion_tokens", "sequence", "retry_at", "messages_before"), 1),
        **dict.fromkeys(("turn", "anew_from", "expires_after_seconds"), 1),
    ),
    RunStep: attrs.evolve(
        LITTLE[RunStep],
        step_details=MessageCreation("msg_1"),
        assistant_id="asst_1",
        last_error=ERROR,
        metadata=METADATA,
        usage=Usage(1, 1, 2),
        **dict.fromkeys(("expired_at", "cancelled_at", "failed_at", "completed_at", "sequence"), 1),
        **dict.fromkeys(("turn", "position"), 1),
    ),
}
LEASE = Lease(thread_id="thread_1", run_id="run_1", worker_id="worker_1", token="77940a", attempt=2)  # noqa: S106

SECTIONS = {
    Assistant: "Assistants",
    Thread: "meta.json",
    Message: "messages.jsonl",
    Run: "status.json",
    RunStep: "steps/&lt;step_id&gt;.json",
    RunEvent: "events.jsonl",
}
JSON_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "object": dict,
    "array": list,
}
ASKED = attrs.evolve(LITTLE[Message], id="msg_asked")
RENAMED = {"type": "step_type"}
# What the files have beside the fields of the models.
ADDED: dict[type, dict[str, Any]] = {Message: {"sequence": 0}, RunEvent: {"more": True, "commit": {"lease": None}}}


def keys_said(model):
    """Return the rows of the model's table of keys, by key."""
    return {plain(row["key"]): row for row in tables(FORMAT, SECTIONS[model])[0]}


def full_record(model):
    value: Any
    if model is RunEvent:
        value = RunEvent(1, EventType.RUN_CREATED, 1, LITTLE[Run])
    else:
        value = RunRecord(FULL[Run], LEASE) if model is Run else FULL[model]
    record = json.loads(codec.dump(codec.to_record(value)))
    if model is Run:
        return json.loads(status_record.encode(record, Summary(1, 1, ("step_1",), 1)))
    return record | ADDED.get(model, {})


def all_keys(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from all_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from all_keys(inner)


@pytest.mark.parametrize("model", list(FULL), ids=lambda model: model.__name__)
def test_the_full_example_sets_every_field(model):
    for field in attrs.fields(model):
        default: Any = field.default
        if field.default is not attrs.NOTHING and hasattr(default, "factory"):
            default = default.factory()
        assert getattr(FULL[model], field.name) != default, field.name


@pytest.mark.parametrize("model", list(SECTIONS), ids=lambda model: model.__name__)
def test_the_tables_of_keys_match_the_codec(model):
    record = full_record(model)
    said = keys_said(model)
    assert set(said) == set(record)
    for key, row in said.items():
        types = tuple(JSON_TYPES[word] for word in row["type"].split(" or "))
        assert isinstance(record[key], types), key
        assert isinstance(record[key], bool) is (bool in types), key
    inner = set(all_keys(record)) - set(METADATA) - {"file_id", "code_interpreter"}
    assert inner <= set(code_in(text_of(FORMAT))), "a key within a record is not on the page"


@pytest.mark.parametrize("model", list(SECTIONS), ids=lambda model: model.__name__)
def test_a_record_without_a_required_key_is_damaged(model):
    kind = RunRecord if model is Run else model
    for key, row in keys_said(model).items():
        record = full_record(model)
        del record[key]
        if row["present"] == "required":
            with pytest.raises(SerializationError):
                codec.from_record(record, kind, "file")
        else:
            codec.from_record(record, kind, "file")
    needed = {key for key, row in keys_said(model).items() if row["present"] == "required"}
    if model is not RunEvent:
        required = {field.name for field in attrs.fields(model) if field.default is attrs.NOTHING}
        assert needed == {RENAMED.get(name, name) for name in required}


async def test_the_stores_files_match_the_page(tmp_path):
    async with FileStore(tmp_path, durability="process") as store:
        key = IdempotencyKey("key", "asked for")
        await store.create_assistant(LITTLE[Assistant], key=key)
        await store.create_thread(LITTLE[Thread], key=key)
        await store.append_message("thread_1", LITTLE[Message], key=key)
        await store.create_run("thread_1", LITTLE[Run], key=key)
        await store.append_step("thread_1", "run_1", LITTLE[RunStep])
        await store.update_message("thread_1", "msg_1", metadata={"liked": "yes"})
        await store.delete_message("thread_1", "msg_1")
    thread = tmp_path / "thread_1"
    run = thread / "runs" / "run_1"
    written = {
        Assistant: json.loads((tmp_path / ".threadloom" / "assistants" / "asst_1.json").read_bytes()),
        Thread: json.loads((thread / "meta.json").read_bytes()),
        Message: json.loads((thread / "messages.jsonl").read_bytes()),
        Run: json.loads((run / "status.json").read_bytes()),
        RunStep: json.loads((run / "steps" / "step_1.json").read_bytes()),
        RunEvent: json.loads((run / "events.jsonl").read_bytes().splitlines()[0]),
    }
    for name in ADDED[RunEvent]:
        written[RunEvent].pop(name, None)
    for model, record in written.items():
        said = keys_said(model)
        assert {key for key in said if said[key]["present"] in {"required", "always"}} == set(record), model
    edits = [json.loads(line) for line in (thread / "edits.jsonl").read_bytes().splitlines()]
    kinds = {plain(row["object"]): code_in(row["keys"]) for row in tables(FORMAT, "edits.jsonl")[0]}
    assert kinds == {edit["object"]: list(edit) for edit in edits}

    tree = set(re.findall(r"^    +([\w<>.-]+/?)", text_of(FORMAT, "The tree"), re.MULTILINE))
    names = {"<thread_id>/": thread, "<run_id>/": run, "<step_id>.json": run / "steps" / "step_1.json"}
    named = {path: name for name, path in names.items()}
    keys = [*thread.glob("keys/*"), *(tmp_path / ".threadloom" / "keys").glob("**/*.json")]
    named |= dict.fromkeys(keys, "<kind>-<hash>.json")
    rows = tables(FORMAT, "Idempotency keys")[0]
    required = {plain(row["key"]) for row in rows if row["present"] == "required"}
    for path in keys:
        assert required <= json.loads(path.read_bytes()).keys() <= {plain(row["key"]) for row in rows}
    assert sorted(path.name.partition("-")[0] for path in thread.glob("keys/*")) == ["message", "run"]
    for path in [thread, *thread.rglob("*")]:
        assert named.get(path, f"{path.name}/" if path.is_dir() else path.name) in tree, path


async def test_a_runs_files_have_no_undocumented_key(tmp_path):
    at_work = []

    async def answer(ctx):
        async with ctx.step([FunctionCall(name="f", arguments="")]) as step:
            step.set_output(step.calls[0], "1")
        async with ctx.message() as message:
            await message.write("half")
            at_work.append(await asyncio.to_thread((store.run_dir("thread_1", "run_1") / "status.json").read_bytes))
            ctx.fail("server_error", "no")

    async with FileStore(tmp_path, durability="process") as store, RunWorker(store, answer):
        await store.create_thread(LITTLE[Thread])
        run = await store.create_run("thread_1", attrs.evolve(FULL[Run], expires_at=None))
        run = await store.wait_for_run("thread_1", run.id)
        assert run.last_error == RunError("server_error", "no")
        directory = store.run_dir("thread_1", run.id)
        steps = [json.loads(path.read_bytes()) for path in store.steps_dir("thread_1", run.id).iterdir()]
        messages = (store.thread_dir("thread_1") / "messages.jsonl").read_bytes().splitlines()
        events = [json.loads(line) for line in (directory / "events.jsonl").read_bytes().splitlines()]
    assert json.loads(at_work[0]).keys() <= keys_said(Run).keys()
    assert "lease" in json.loads(at_work[0])
    assert json.loads((directory / "status.json").read_bytes()).keys() <= keys_said(Run).keys()
    assert all(step.keys() <= keys_said(RunStep).keys() for step in steps)
    assert all(json.loads(line).keys() <= keys_said(Message).keys() for line in messages)
    assert {key for event in events for key in event} == keys_said(RunEvent).keys()
    deltas = {event["event"]: set(event["data"]) for event in events if event["event"].endswith("delta")}
    said = {name: set(code_in(row["data"])) for row in event_rows() for name in code_in(row["event"])}
    assert deltas == {name: said[name] for name in ("thread.run.step.delta", "thread.message.delta")}
    assert {event["number"] // 1_000_000 for event in events} == {0, 1}


def event_rows():
    return tables(FORMAT, "events.jsonl")[1]


def test_the_table_of_events_is_complete():
    assert sorted(name for row in event_rows() for name in code_in(row["event"])) == sorted(EventType)


def test_the_listed_statuses_roles_and_types_are_complete():
    words = {Run: RunStatus, RunStep: RunStepStatus}
    for model, statuses in words.items():
        assert set(code_in(keys_said(model)["status"]["meaning"])) == set(statuses)
    assert set(code_in(keys_said(Message)["role"]["meaning"])) == set(MessageRole)
    assert set(code_in(keys_said(RunStep)["step_type"]["meaning"])) == set(RunStepType)
    assert sorted(plain(row["status"]) for row in tables(LIFECYCLE, "Statuses")[0]) == sorted(RunStatus)
    reasons = set(code_in(keys_said(Message)["incomplete_details"]["meaning"])) - {"reason"}
    assert reasons == set(transaction._REASON.values())


def test_the_example_records_are_valid():
    for model, section in SECTIONS.items():
        kind = RunRecord if model is Run else model
        [example] = blocks("json", FORMAT, section)
        records = [json.loads(example)] if example.startswith("{\n") else map(json.loads, example.splitlines())
        for record in records:
            assert record.keys() <= keys_said(model).keys()
            kept = {key: value for key, value in record.items() if key not in {"log", *ADDED.get(model, ())}}
            if model is RunStep:
                kept["sequence"] = record["sequence"]
            assert json.loads(codec.dump(codec.to_record(codec.from_record(record, kind, "file")))) == kept
    [example] = blocks("json", FORMAT, "status.json")
    assert status_record.decode(example.encode(), "file").summary == Summary(1548, 1_000_001)


async def test_the_table_of_commit_keys_is_complete(tmp_path):
    async with FileStore(tmp_path, durability="process") as store:
        await store.create_thread(LITTLE[Thread])
        first = await store.create_run("thread_1", LITTLE[Run])
        said = attrs.evolve(LITTLE[Message], id="msg_said", run_id=first.id)
        await store.append_message("thread_1", said)
        claim = await store.try_claim_run("worker")
        assert claim is not None
        call = StepDelta("step_1", 0, CALL)
        await store.write_run(claim.lease, RunWrite(items=(attrs.evolve(LITTLE[RunStep], run_id=first.id), call)))
        await store.update_run("thread_1", first.id, metadata={"a": "b"})
        await store.create_run("thread_1", attrs.evolve(LITTLE[Run], id="run_2"), on_busy="rollback", messages=[ASKED])
    lines = [line for log in tmp_path.glob("thread_1/runs/*/events.jsonl") for line in log.read_bytes().splitlines()]
    commits = [json.loads(line).get("commit", {}) for line in lines]
    said_keys = {plain(row["in commit"]) for row in tables(FORMAT, "events.jsonl")[2]}
    assert {key for commit in commits for key in commit} == said_keys


async def test_an_external_program_can_write_by_the_rules(tmp_path):
    async def done(ctx):
        return "done"

    async with FileStore(tmp_path, durability="process") as store, RunWorker(store, done):
        await store.create_thread(LITTLE[Thread])
        first = await store.create_run("thread_1", LITTLE[Run])
        await store.wait_for_run("thread_1", first.id)
        thread = store.thread_dir("thread_1")
        bare = {"created_at": 1, "thread_id": "thread_1", "x_mine": 7}

        new = thread / "new"
        new.write_text(json.dumps({"id": "thread_1", **bare, "metadata": {"a": "b"}}))
        new.rename(thread / "meta.json")
        log = os.open(thread / "messages.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, json.dumps({"id": "msg_1", "role": "user", "content": [], **bare}).encode() + b"\n")
        os.close(log)

        lock = os.open(thread, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = tmp_path / ".made-elsewhere"
        made.mkdir()
        (made / "status.json").write_text(json.dumps({"id": "run_2", **bare, "status": "queued"}))
        made.rename(thread / "runs" / "run_2")
        stamps = os.open(tmp_path / ".threadloom" / "stamps", os.O_WRONLY)
        os.pwrite(stamps, os.urandom(8), 8 * (zlib.crc32(b"thread_1") % 65536))
        os.close(stamps)
        (tmp_path / ".threadloom" / "queue" / "thread_1").write_bytes(b"")
        os.close(lock)

        assert (await store.get_thread("thread_1")).metadata == {"a": "b"}
        assert (await store.get_message("thread_1", "msg_1")).run_id is None
        async with asyncio.timeout(PATIENCE_SECONDS):
            ran = await store.wait_for_run("thread_1", "run_2")
        assert ran.status is RunStatus.COMPLETED
        await store.update_thread("thread_1", metadata={"c": "d"})
        assert json.loads((thread / "meta.json").read_bytes())["x_mine"] == 7
        assert json.loads((thread / "runs" / "run_2" / "status.json").read_bytes())["x_mine"] == 7


async def test_the_table_of_the_stores_own_directory_is_complete(tmp_path):
    own = tmp_path / ".threadloom"
    async with FileStore(tmp_path) as store:
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
        entry = json.loads((own / "queue" / thread.id).read_bytes())
        [store_file] = (own / "stores").iterdir()
        counter, identity = store_file.read_text().splitlines()
        stamps = (own / "stamps").read_bytes()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not ((own / "boot").exists() and (own / "scanned").exists()):  # noqa: ASYNC110 - written in the background
                await asyncio.sleep(0.01)
        names = {path.name for path in own.iterdir()}
        scanned = json.loads((own / "scanned").read_bytes())
        await store.force_update_run_status(thread.id, run.id, RunStatus.CANCELLED)
        assert [path.name for path in (own / "idle").iterdir()] == [thread.id]
    rows = {plain(row["name"]): row["contents"] for row in tables(FORMAT, ".threadloom/")[0]}
    assert names == {name.split("/")[0] for name in rows}
    assert (own / "format").read_text() == f"{code_in(rows['format'])[0]}\n"
    assert (own / "boot").read_text().strip() == entry["boot"]
    assert entry == {"boot": entry["boot"], "sequence": run.sequence, "active": [[run.sequence, run.id]]}
    assert json.loads(blocks("json", FORMAT, ".threadloom/")[0]).keys() == entry.keys()
    assert scanned.keys() <= set(code_in(rows["scanned"]))
    assert len(counter) == 20
    assert identity.split()[0] == str(os.getpid())
    slot = 8 * (zlib.crc32(thread.id.encode()) % 65536)
    assert len(stamps) == 8 * 65536
    assert any(stamps[slot : slot + 8])


async def test_a_journal_has_the_described_format(tmp_path):
    async with FileStore(tmp_path) as store:
        thread = await store.create_thread(Thread.new(), key=IdempotencyKey("key", "asked for"))
        await store.append_message(thread.id, Message.user(thread.id, "hello"))
        await store.update_thread(thread.id, metadata={"a": "b"})
        run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
        await store.append_step(thread.id, run.id, RunStep.tool_calls(thread_id=thread.id, run_id=run.id))
        await store.delete_thread(thread.id, force=True)
        [journal] = (tmp_path / ".threadloom" / "journals").iterdir()
        written = journal.read_bytes()
    head, _, rest = written.partition(b"\n")
    introduction = text_of(FORMAT, "Journals").split("Then follow blocks.", 1)[0]
    assert json.loads(head).keys() <= set(code_in(introduction))
    assert json.loads(head)["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kinds = set()
    while rest:
        line, _, rest = rest.partition(b"\n")
        crc, length = line.split()
        body, rest = rest[: int(length)], rest[int(length) :]
        assert int(crc, 16) == zlib.crc32(body)
        listed, _, data = body.partition(b"\n")
        assert sum(write[3] for write in json.loads(listed)[1]) == len(data)
        kinds |= {write[0] for write in json.loads(listed)[1]}
    # A write that fails is void, as tests/files/test_faults.py shows.
    assert kinds | {"void"} == {plain(row["kind"]) for row in tables(FORMAT, "Journals")[0]}
    [example] = blocks("text", FORMAT, "Journals")
    [(_, [write])] = read_journal(head + b"\n" + example.encode()).blocks
    assert write.data.decode() in text_of(FORMAT, "edits.jsonl")
