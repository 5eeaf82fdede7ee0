"""Finds a handler by its name on the command line."""

from __future__ import annotations

import sys
import traceback
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import reduce
from importlib import import_module
from pathlib import Path

from threadloom.cli._echo import echo
from threadloom.cli._errors import CannotStartError
from threadloom.errors import InvalidInputError
from threadloom.worker import Handler
from threadloom.worker._handler import check_handler

__all__ = ["ECHO", "OPENAI_CHAT", "handler_named"]

ECHO, OPENAI_CHAT = "echo", "openai-chat"


def handler_named(name: str) -> AbstractAsyncContextManager[Handler]:
    """Return a context manager that opens the named handler, or raise ``CannotStartError``."""
    if name == ECHO:
        return nullcontext(echo)
    if name == OPENAI_CHAT:
        try:
            from threadloom.cli._chat import chat  # noqa: PLC0415 - part of an extra, and slow to import
        except ModuleNotFoundError as error:
            raise CannotStartError(f"--handler {name} needs {error.name}: pip install 'threadloom[cli]'") from None
        return chat()
    return nullcontext(_imported(name))


def _imported(name: str) -> Handler:
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise CannotStartError(
            f"--handler {name!r} is not a handler: use package.module:function, {OPENAI_CHAT} or {ECHO}."
        )
    if not sys.flags.safe_path and (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # find the same modules as `python -m threadloom`
    try:
        module = import_module(module_name)
    except Exception as error:
        raise CannotStartError(f"--handler {name!r} cannot be imported: {_in_one_line(error)}") from error
    try:
        handler: Handler = reduce(getattr, path.split("."), module)  # type: ignore[assignment]
    except AttributeError:
        raise CannotStartError(f"--handler {name!r} does not exist: the module {module_name} has no {path}.") from None
    if not callable(handler):
        raise CannotStartError(
            f"--handler {name!r} is not a handler: it must be an async function that takes a RunContext, "
            f"not {type(handler).__name__}."
        )
    try:
        check_handler(handler)
    except InvalidInputError as error:
        raise CannotStartError(f"--handler {name!r} is not a handler: {error}") from None
    return handler


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    where = traceback.extract_tb(error.__traceback__)[-1]
    at = "" if isinstance(error, ModuleNotFoundError) else f" ({where.filename}, line {where.lineno})"
    return f"{type(error).__name__}: {text}{at}"
