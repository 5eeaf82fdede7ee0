"""What backends and workers are tested with.

``ManualClock`` needs nothing more than threadloom. ``StoreConformance`` needs pytest and pytest-asyncio, and
``store_machine`` needs hypothesis: each is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadloom.testing._clock import ManualClock

if TYPE_CHECKING:
    from threadloom.testing._conformance import StoreConformance
    from threadloom.testing._machine import StoreMachine, store_machine

__all__ = ["ManualClock", "StoreConformance", "StoreMachine", "store_machine"]


def __getattr__(name: str) -> Any:
    """Import what needs more than threadloom when it is first asked for."""
    if name == "StoreConformance":
        from threadloom.testing import _conformance  # noqa: PLC0415 - see the module's docstring

        return _conformance.StoreConformance
    if name in {"StoreMachine", "store_machine"}:
        from threadloom.testing import _machine  # noqa: PLC0415 - see the module's docstring

        return getattr(_machine, name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
