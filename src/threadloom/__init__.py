"""A durable store for threads, messages, runs and run steps, and a worker for the runs."""

from threadloom.clock import Clock, SystemClock
from threadloom.errors import *  # noqa: F403
from threadloom.events import EventType, MessageDelta, RunEvent, StepDelta
from threadloom.lifecycle import Lease, RunWrite
from threadloom.models import (
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
from threadloom.pages import Order, Page
from threadloom.store import Claim, ThreadStore
from threadloom.stores.files import FileStore
from threadloom.stores.memory import MemoryStore
