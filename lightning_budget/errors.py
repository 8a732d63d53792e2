"""The one exception for input a person can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, told in one line: what was found and where, what is allowed, and how to mend it.

    Command lines print the message alone and exit with status 2; as a ``ValueError`` it can be caught by callers.
    """

    def __init__(self, found: str, allowed: str, fix: str) -> None:
        super().__init__(" ".join(f"{found}; allowed: {allowed}; fix: {fix}".split()))
        self.parts = (found, allowed, fix)

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        # Errors travel between ranks, and an exception is otherwise rebuilt from its message alone.
        return type(self), self.parts
