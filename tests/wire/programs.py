"""Programs with OpenAI's official clients, and servers, each in a process that ends with its test."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.worker_fixtures import PATIENCE
from tests.wire.official_clients import NODE, node_client, python_client

HERE = Path(__file__).parent
MISSING = "A client is missing, or is another one: run `make setup`."


@asynccontextmanager
async def program(*command: str | Path, env: Mapping[str, str] | None = None) -> AsyncIterator[Any]:
    process = await asyncio.create_subprocess_exec(
        *command, env=env, cwd=HERE.parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(12 * PATIENCE.total_seconds()):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def server(directory: Path) -> AsyncIterator[tuple[Any, str]]:
    """Give the process of a server over the files in ``directory``, and its URL."""
    async with program(sys.executable, "-m", "tests.support.wire_server", directory) as process:
        yield process, (await process.stdout.readline()).decode().strip()


@asynccontextmanager
async def python_flows(major: str, flavour: str, *more: str) -> AsyncIterator[Any]:
    command = (sys.executable, "-m", "tests.wire.flows", flavour, *more)
    async with program(*command, env=python_client(major)) as process:
        assert (await said(process, "version")).startswith(f"{major}."), MISSING
        yield process


@asynccontextmanager
async def node_flows(url: str) -> AsyncIterator[Any]:
    async with program(NODE, HERE / "node" / "flows.cjs", url, env=node_client()) as process:
        await said(process, "version")
        yield process


async def said(process: Any, flow: str) -> Any:
    """Return what was seen of the flow that comes next."""
    line = await process.stdout.readline()
    assert line, MISSING if flow == "version" else f"The program has ended before {flow!r}: its stderr says why."
    told = json.loads(line)
    assert told["flow"] == flow, told
    return told["seen"]


async def rest(process: Any) -> dict[str, Any]:
    """Return what was seen of all the flows that come, once the program has ended well."""
    told = [json.loads(line) for line in (await process.stdout.read()).splitlines()]
    assert await process.wait() == 0, f"The program fell over after {[seen['flow'] for seen in told]}: see its stderr."
    return {seen["flow"]: seen["seen"] for seen in told}
