"""Counts the tokens that one call of a handler uses, and compares them with the limits of its run."""

from __future__ import annotations

from threadloom.models import Run, Usage

__all__ = ["Tokens"]


class Tokens:
    """Counts the tokens that a handler adds to those its run had when it was claimed.

    ``usage`` of a run counts only attempts that led to a result, and the limits count every attempt. So the tokens of
    an attempt become ``usage`` if it ends the run, and ``spent`` if it fails. If the run has limits, each transaction
    also writes its tokens as ``spent``, as if the attempt had failed already, because its worker may be killed.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._added: Usage | None = None
        self._told: Usage | None = None  # written to the store
        self._was_told = False

    @property
    def usage(self) -> Usage | None:
        """``usage`` for the transaction that ends the run or asks for tool outputs."""
        return _sum(self._run.usage, self._added)

    @property
    def spent_before(self) -> Usage | None:
        """``spent`` for the same transaction. None if nothing was written since the claim."""
        return (self._run.spent or Usage()) if self._was_told else None

    @property
    def spent(self) -> Usage | None:
        """``spent`` for the transaction that requeues the run. None if no tokens were used."""
        return None if self._added is None else _sum(self._run.spent, self._added)

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens."""
        self._added = _sum(self._added, Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens))

    def passed_limit(self) -> str | None:
        """Return the name of the limit that all attempts together exceed, or None."""
        total = _sum(_sum(self._run.usage, self._run.spent), self._added) or Usage()
        for name, used in (
            ("max_prompt_tokens", total.prompt_tokens),
            ("max_completion_tokens", total.completion_tokens),
        ):
            limit: int | None = getattr(self._run, name)
            if limit is not None and used > limit:
                return name
        return None

    def to_tell(self) -> Usage | None:
        """Return ``spent`` for the handler's next transaction, or None if it need not write any."""
        has_limit = self._run.max_prompt_tokens is not None or self._run.max_completion_tokens is not None
        if not has_limit or self.spent == self._told:
            return None
        self._was_told = True  # even if the transaction fails: it may have been written
        return self.spent

    def note_told(self, spent: Usage | None) -> None:
        """Record that the transaction with this ``spent`` was written."""
        self._told = spent or self._told


def _sum(one: Usage | None, other: Usage | None) -> Usage | None:
    if one is None or other is None:
        return one or other
    return one + other
