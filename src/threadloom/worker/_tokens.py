"""The tokens that one call of a handler uses, set against the limits of its run."""

from __future__ import annotations

from threadloom.models import Run, Usage

__all__ = ["Tokens"]


class Tokens:
    """Counts what a handler adds to what its run had when it was claimed.

    A run's ``usage`` counts an attempt once, however often it is done again, and its limits count every attempt. So
    what an attempt has used becomes ``usage`` where it comes to an end, and ``spent`` where it comes to nothing. A run
    that has limits is told of it on the way, too, as if it had come to nothing already: its worker may be killed.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._added: Usage | None = None
        self._told: Usage | None = None  # what the store is known to have
        self._was_told = False

    @property
    def usage(self) -> Usage | None:
        """What the act says that ends the run, or asks for tools."""
        return _sum(self._run.usage, self._added)

    @property
    def spent_before(self) -> Usage | None:
        """What the same act says of ``spent``, none where the store was told of nothing since the claim."""
        return (self._run.spent or Usage()) if self._was_told else None

    @property
    def spent(self) -> Usage | None:
        """What the act says of ``spent`` that puts the run back; none where nothing was used."""
        return None if self._added is None else _sum(self._run.spent, self._added)

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count tokens."""
        self._added = _sum(self._added, Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens))

    def passed_limit(self) -> str | None:
        """Return the name of the limit that all attempts together have passed, which is why the run ends."""
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
        """Return what the handler's next act has to say of ``spent``, if anything."""
        has_limit = self._run.max_prompt_tokens is not None or self._run.max_completion_tokens is not None
        if not has_limit or self.spent == self._told:
            return None
        self._was_told = True  # also where the act fails: it may be made all the same
        return self.spent

    def note_told(self, spent: Usage | None) -> None:
        """Know that the act was made that said so."""
        self._told = spent or self._told


def _sum(one: Usage | None, other: Usage | None) -> Usage | None:
    if one is None or other is None:
        return one or other
    return one + other
