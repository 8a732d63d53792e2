"""What a check concludes, in one line, and its numbers as plain JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """One line on one check.

    Attributes:
        ok: nothing was found.
        text: what was measured and, in a warning, the threshold and what to do.
    """

    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'warning'}: {self.text}"


def probability(p: float) -> str:
    """``p = 0.042``, or ``p < 1e-300`` where float64 ends."""
    return f"p = {p:.2g}" if p > 1e-300 else "p < 1e-300"


def plain(result: Any) -> dict[str, Any]:
    """Fields of a dataclass as plain JSON types; what is ``None`` is absent."""
    return _plain(asdict(result))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
