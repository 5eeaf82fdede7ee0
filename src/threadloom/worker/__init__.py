"""Workers: a worker claims queued runs from a store and passes each to a handler, an async function of the user."""

from threadloom.worker._context import RunContext
from threadloom.worker._handler import Handler
from threadloom.worker._parts import MessageWriter, StepWriter
from threadloom.worker._retry import RetryPolicy
from threadloom.worker._worker import RunWorker

__all__ = ["Handler", "MessageWriter", "RetryPolicy", "RunContext", "RunWorker", "StepWriter"]
