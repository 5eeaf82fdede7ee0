"""The cattrs converter between models and records: the only module that knows cattrs, and the keys of format 1.

It is imported when the first record is read or written: importing cattrs takes a tenth of the time of ``import
threadloom``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, cast

import attrs
import cattrs
from cattrs.fns import identity
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
from cattrs.v import format_exception

from threadloom.events import Checkpoint, EventData, EventType, MessageDelta, RunEvent, StepDelta
from threadloom.models import (
    Assistant,
    Content,
    FunctionCall,
    ImageFileContent,
    ImageUrlContent,
    Message,
    MessageCreation,
    RefusalContent,
    RequiredAction,
    Run,
    RunError,
    RunStep,
    StepDetails,
    TextContent,
    Thread,
    ToolCall,
    ToolCalls,
    UnknownObject,
)
from threadloom.records import Lease, RunRecord

__all__ = ["converter", "said"]

Record = dict[str, Any]
_LONGEST: Final = 120  # characters of one value in a message


@functools.cache
def converter(*, detailed: bool = False) -> cattrs.Converter:
    """Return the converter between models and records, or the slower one that says where a record is wrong."""
    return _converter_with(detailed=detailed)


def said(error: BaseException) -> str:
    """Return in words what the detailed converter has found wrong in a record; long values are cut short."""

    def one(error: BaseException, kind: type | None) -> str:
        if not isinstance(error, TypeError | ValueError):
            return format_exception(error, kind)
        text = str(error)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"

    return "; ".join(cattrs.transform_error(error, "record", one)).rstrip(".")


def _strict(kind: type, *accepted: type) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        # bool is an int to Python, and is none to JSON.
        if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
            return value
        message = f"expected {kind.__name__}, not {value!r}"
        raise TypeError(message)

    return structure


_JSON_TYPES = (Mapping[str, Any], Mapping[str, Any] | None, str | Mapping[str, Any] | None)


def _any_json(value: Any, _: Any) -> Any:
    return value


def _unstructure_content(block: Content) -> Record:
    match block:
        case TextContent():
            return {"type": "text", "text": {"value": block.text, "annotations": list(block.annotations)}}
        case ImageFileContent():
            return {"type": "image_file", "image_file": _present(file_id=block.file_id, detail=block.detail)}
        case ImageUrlContent():
            return {"type": "image_url", "image_url": _present(url=block.url, detail=block.detail)}
        case RefusalContent():
            return {"type": "refusal", "refusal": block.refusal}
        case UnknownObject():
            return dict(block.data)


def _structure_content(block: Any, _: Any) -> Content:
    match block:
        case {"type": "text", "text": {"value": str(text)}}:
            return TextContent(text, _annotations(block["text"].get("annotations")))
        case {"type": "text", "text": str(text)}:
            return TextContent(text)
        case {"type": "image_file", "image_file": {"file_id": str(file_id)}}:
            return ImageFileContent(file_id, _optional_text(block["image_file"], "detail"))
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return ImageUrlContent(url, _optional_text(block["image_url"], "detail"))
        case {"type": "refusal", "refusal": str(refusal)}:
            return RefusalContent(refusal)
        case {"type": str()} if not _is_known_content(block["type"]):
            return UnknownObject(block)
    message = f"expected a block of content, not {block!r}"
    raise TypeError(message)


def _annotations(value: Any) -> tuple[Any, ...]:
    if value is None or isinstance(value, list):
        return tuple(value or ())
    message = f"expected a list of annotations, not {value!r}"
    raise TypeError(message)


def _is_known_content(kind: str) -> bool:
    return kind in {"text", "image_file", "image_url", "refusal"}


def _unstructure_tool_call(call: ToolCall | UnknownObject) -> Record:
    if isinstance(call, UnknownObject):
        return dict(call.data)
    function = _present(name=call.function.name, arguments=call.function.arguments, output=call.function.output)
    return {"id": call.id, "type": call.type, "function": function}


def _structure_tool_call(call: Any, _: Any = None) -> ToolCall | UnknownObject:
    match call:
        case {"id": str(id_), "function": {"name": str(name), "arguments": str(arguments)}}:
            output = _optional_text(call["function"], "output")
            kind = _optional_text(call, "type")
            function = FunctionCall(name=name, arguments=arguments, output=output)
            return ToolCall(id=id_, function=function, type="function" if kind is None else kind)
        case {"type": str(kind)} if kind != "function":
            return UnknownObject(call)
    message = f"expected a tool call, not {call!r}"
    raise TypeError(message)


def _unstructure_details(details: StepDetails) -> Record:
    match details:
        case MessageCreation(message_id):
            # Readable in both worlds: the seed looks for message_id, OpenAI's clients for the typed form.
            return {
                "message_id": message_id,
                "type": "message_creation",
                "message_creation": {"message_id": message_id},
            }
        case ToolCalls(calls):
            return {"type": "tool_calls", "tool_calls": [_unstructure_tool_call(call) for call in calls]}
        case UnknownObject(data):
            return dict(data)


def _structure_details(details: Any, _: Any) -> StepDetails | None:
    match details:
        case None:
            return None
        case {"message_id": str(message_id)} | {"message_creation": {"message_id": str(message_id)}}:
            return MessageCreation(message_id)
        case {"tool_calls": list(calls)}:
            return ToolCalls(tuple(_structure_tool_call(call) for call in calls))
        case dict():
            return UnknownObject(details)
    message = f"expected the details of a step, not {details!r}"
    raise TypeError(message)


def _unstructure_required_action(action: RequiredAction) -> Record:
    calls = [_unstructure_tool_call(call) for call in action.tool_calls]
    return {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": calls}}


def _structure_required_action(action: Any, _: Any) -> RequiredAction:
    calls = [_structure_tool_call(call) for call in action["submit_tool_outputs"]["tool_calls"]]
    return RequiredAction(tuple(call for call in calls if isinstance(call, ToolCall)))


def _optional_text(record: Record, key: str) -> str | None:
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value
    message = f"expected a string at {key}, not {value!r}"
    raise TypeError(message)


def _present(**values: Any) -> Record:
    return {key: value for key, value in values.items() if value is not None}


_EVENT_DATA: tuple[tuple[str, type[EventData]], ...] = (
    ("thread.run.step.delta", StepDelta),
    ("thread.run.step.", RunStep),
    ("thread.run.", Run),
    ("thread.message.delta", MessageDelta),
    ("thread.message.", Message),
    ("threadloom.checkpoint", Checkpoint),
)
_EVENT_DATA_BY_TYPE = {
    kind: next(model for prefix, model in _EVENT_DATA if kind.startswith(prefix)) for kind in EventType
}


def _converter_with(*, detailed: bool) -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=detailed, omit_if_default=True)
    converter.register_structure_hook(str, _strict(str, str))
    converter.register_structure_hook(StrEnum, lambda value, kind: kind(value))
    # A member is text; orjson writes it as such. The identity costs nothing: cattrs leaves the call out.
    converter.register_unstructure_hook(StrEnum, identity)
    converter.register_structure_hook(int, _strict(int, int))
    converter.register_structure_hook(bool, _strict(bool, bool))
    converter.register_structure_hook(float, _strict(float, float, int))
    # Metadata and the like: any JSON that somebody put there, as it is.
    converter.register_structure_hook_func(lambda kind: kind in _JSON_TYPES, _any_json)
    converter.register_structure_hook(Content, _structure_content)
    for block in (TextContent, ImageFileContent, ImageUrlContent, RefusalContent):
        converter.register_unstructure_hook(block, _unstructure_content)
    converter.register_structure_hook(ToolCall, _structure_tool_call)
    converter.register_unstructure_hook(ToolCall, _unstructure_tool_call)
    for details in (StepDetails, StepDetails | None):
        converter.register_structure_hook(details, _structure_details)
    for details in (MessageCreation, ToolCalls, UnknownObject):
        converter.register_unstructure_hook(details, _unstructure_details)
    converter.register_structure_hook(RequiredAction, _structure_required_action)
    converter.register_unstructure_hook(RequiredAction, _unstructure_required_action)

    _register(converter, Assistant, "assistant", required=("metadata",))
    _register(converter, Thread, "thread", required=("metadata",))
    _register(converter, Message, "thread.message", required=("status",))
    _register(converter, Run, "thread.run", required=("model", "assistant_id"))
    _register_step(converter)
    _register_run_record(converter)
    _register_event(converter)
    return converter


def _register(converter: cattrs.Converter, model: type, kind: str, required: tuple[str, ...], **renamed: str) -> None:
    """Give ``model`` its ``object`` key, keep ``required`` keys also at their defaults, and take null for absent."""
    overrides = {name: override(omit_if_default=False) for name in required}
    overrides |= {name: override(rename=key) for name, key in renamed.items()}
    without_id = {**overrides, "id": override(omit=True)}
    # Typed loosely: the overrides of cattrs are keywords beside its own options, which mypy cannot tell apart.
    make_unstructure: Any = make_dict_unstructure_fn
    make_structure: Any = make_dict_structure_fn
    unstructure = make_unstructure(model, converter, _cattrs_omit_if_default=True, **without_id)
    structure = make_structure(model, converter, _cattrs_detailed_validation=converter.detailed_validation, **overrides)

    def to_dict(value: Any) -> Record:
        record = {"id": value.id, "object": kind}
        record.update(unstructure(value))
        return record

    def from_dict(record: Any, _: Any) -> Any:
        if not isinstance(record, dict):
            message = f"expected an object, not {type(record).__name__}"
            raise TypeError(message)
        return structure({key: value for key, value in record.items() if value is not None}, model)

    converter.register_unstructure_hook(model, to_dict)
    converter.register_structure_hook(model, from_dict)


def _register_step(converter: cattrs.Converter) -> None:
    _register(converter, RunStep, "thread.run.step", (), type="step_type")
    plain_to = converter.get_unstructure_hook(RunStep)
    plain_from = converter.get_structure_hook(RunStep)

    def to_dict(step: RunStep) -> Record:
        record = plain_to(step)
        if step.last_error is not None:
            record["error"] = step.last_error.message  # the seed's key: the text alone
        return cast("Record", record)

    def from_dict(record: Any, _: Any) -> RunStep:
        step: RunStep = plain_from(record, RunStep)
        error = record.get("error")
        if step.last_error is None and error is not None:
            return attrs.evolve(step, last_error=RunError("server_error", str(error)))
        return step

    converter.register_unstructure_hook(RunStep, to_dict)
    converter.register_structure_hook(RunStep, from_dict)


def _register_run_record(converter: cattrs.Converter) -> None:
    def to_dict(value: RunRecord) -> Record:
        record = cast("Record", converter.unstructure(value.run, Run))
        if value.lease is not None:
            lease = value.lease
            record["lease"] = {"worker_id": lease.worker_id, "token": lease.token, "attempt": lease.attempt}
            if lease.liveness_id:
                record["lease"]["liveness_id"] = lease.liveness_id
        return record

    def from_dict(record: Any, _: Any) -> RunRecord:
        run = converter.structure(record, Run)
        match record.get("lease"):
            case {"worker_id": str(worker_id), "token": str(token), "attempt": int(attempt)}:
                lease = Lease(
                    thread_id=run.thread_id,
                    run_id=run.id,
                    worker_id=worker_id,
                    token=token,
                    attempt=attempt,
                    liveness_id=str(record["lease"].get("liveness_id", "")),
                )
                return RunRecord(run, lease)
            case _:
                return RunRecord(run)

    converter.register_unstructure_hook(RunRecord, to_dict)
    converter.register_structure_hook(RunRecord, from_dict)


def _register_event(converter: cattrs.Converter) -> None:
    def to_dict(event: RunEvent) -> Record:
        return {
            "number": event.number,
            "event": event.type,
            "created_at": event.created_at,
            "data": converter.unstructure(event.data),
        }

    def from_dict(record: Any, _: Any) -> RunEvent:
        kind = EventType(record["event"])
        return RunEvent(
            converter.structure(record["number"], int),
            kind,
            converter.structure(record["created_at"], int),
            converter.structure(record["data"], _EVENT_DATA_BY_TYPE[kind]),
        )

    converter.register_unstructure_hook(RunEvent, to_dict)
    converter.register_structure_hook(RunEvent, from_dict)
