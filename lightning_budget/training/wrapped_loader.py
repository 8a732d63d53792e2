"""What every wrapper around a data loader owes the trainer."""

from __future__ import annotations

from typing import Any


class WrappedLoader:
    """Shows the trainer the samplers and the length of the loader inside.

    Args:
        loader: any iterable of batches.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._seen: Any = None

    @property
    def sampler(self) -> Any:
        """Where the trainer sets the epoch."""
        return getattr(self.loader, "sampler", None)

    @property
    def batch_sampler(self) -> Any:
        """Where the trainer sets the epoch too."""
        return getattr(self.loader, "batch_sampler", None)

    def __len__(self) -> int:
        return len(self.loader)

    def _snapshot(self) -> Any:
        return self.loader.state_dict() if is_stateful(self.loader) else None


class WithState:
    """Mixed into a wrapper whose loader has a state, and only then.

    A trainer refuses a checkpoint with another number of states than it has loaders with one, and a run with one
    process, which wraps nothing, must be able to resume from it.
    """

    loader: Any
    _seen: Any

    def state_dict(self) -> dict[str, Any]:
        """The loader's state as it was at the batch last handed out, whatever has been read ahead since."""
        return self.loader.state_dict() if self._seen is None else self._seen

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As the loader's."""
        self._seen = None
        self.loader.load_state_dict(state)


def is_stateful(loader: object) -> bool:
    """Whether a loader can say where it is and go on from there."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
