"""What backends and workers are tested with."""

from threadloom.testing._clock import ManualClock

__all__ = ["ManualClock"]
