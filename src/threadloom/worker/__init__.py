"""Runs queued runs: a worker takes them from a store and hands each to one async function that the user wrote."""

from threadloom.worker._context import RunContext
from threadloom.worker._handler import Handler
from threadloom.worker._parts import MessageWriter, StepWriter
from threadloom.worker._retry import RetryPolicy
from threadloom.worker._worker import RunWorker

__all__ = ["Handler", "MessageWriter", "RetryPolicy", "RunContext", "RunWorker", "StepWriter"]
