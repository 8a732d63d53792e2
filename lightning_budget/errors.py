"""The one exception for input a person can mend."""


class InputError(ValueError):
    """Bad input, told in one line: what was found and where, what is allowed, and how to mend it.

    Command lines print the message alone and exit with status 2; as a ``ValueError`` it can be caught by callers.
    """

    def __init__(self, found: str, allowed: str, fix: str) -> None:
        super().__init__(" ".join(f"{found}; allowed: {allowed}; fix: {fix}".split()))
