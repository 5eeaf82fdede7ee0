"""Builds the request to a chat-completions server for a run."""

from __future__ import annotations

from typing import Any

from threadloom.models import Run, Usage

__all__ = ["chat_request"]

Chat = list[dict[str, Any]]


def chat_request(run: Run, messages: Chat) -> dict[str, Any]:
    """Return the request for the run's next turn.

    It contains only what the run sets: servers reject fields that they do not know, and many know few.

    Args:
        run: The run.

        messages: The conversation, as ``RunContext.chat_messages`` returns it.
    """
    request: dict[str, Any] = {"model": run.model, "messages": _joined(messages)}
    tools = [_tool(tool["function"]) for tool in run.tools if tool.get("type") == "function"]
    if tools:
        request["tools"] = tools
        # A required call is requested only in the first turn. Otherwise the model would call tools forever.
        if run.tool_choice == "none" or (_is_of_a_function(run.tool_choice) and run.turn == 0):
            request["tool_choice"] = run.tool_choice
        if not run.parallel_tool_calls:
            request["parallel_tool_calls"] = False
    if run.response_format not in (None, "auto", {"type": "text"}):
        request["response_format"] = run.response_format
    if run.max_completion_tokens is not None:
        used = (run.usage or Usage()) + (run.spent or Usage())
        request["max_completion_tokens"] = run.max_completion_tokens - used.completion_tokens
    set_ = {"temperature": run.temperature, "top_p": run.top_p, "reasoning_effort": run.reasoning_effort}
    return request | {name: value for name, value in set_.items() if value is not None}


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _is_of_a_function(choice: object) -> bool:
    return choice == "required" or (isinstance(choice, dict) and choice.get("type") == "function")


def _joined(messages: Chat) -> Chat:
    """Return the messages, with an answer's text and calls in one message: some models accept no two in a row."""
    joined: Chat = []
    for message in messages:
        if "tool_calls" in message and joined and joined[-1].keys() == {"role", "content"}:
            last = joined[-1]
            if last["role"] == "assistant":
                joined[-1] = message | {"content": last["content"]}
                continue
        joined.append(message)
    return joined
