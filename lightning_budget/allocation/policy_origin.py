"""Where a policy came from: the budget it was solved for, the data, and the checkpoint that predicted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_budget.errors import InputError


@dataclass(frozen=True)
class Budget:
    """What could be spent.

    Attributes:
        amount: currency, in total for all users or for each of them.
        per_user: which of both; users: N it was solved for.
    """

    amount: float
    per_user: bool
    users: int

    def __str__(self) -> str:
        if self.per_user:
            total = self.amount * self.users
            return f"{self.amount:,.6g} per user, solved for {self.users:,} users ({total:,.6g} in total)"
        each = f" ({self.amount / self.users:,.6g} per user)" if self.users else ""
        return f"{self.amount:,.6g} in total for {self.users:,} users{each}"


@dataclass(frozen=True)
class DataSource:
    """Users it was solved for: a name or path, their number, and a fingerprint of what the file held."""

    name: str
    rows: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name}, {self.rows:,} rows, fingerprint {self.fingerprint}"


@dataclass(frozen=True)
class CheckpointSource:
    """The checkpoint that predicted, and the SHA-256 of its content."""

    path: str
    sha256: str

    @classmethod
    def of(cls, path: str | Path) -> CheckpointSource:
        """Of a checkpoint that is there, a file or a folder; see :func:`content_hash`."""
        return cls(str(path), content_hash(path))

    def __str__(self) -> str:
        return f"{self.path}, sha256 {self.sha256}"


@dataclass(frozen=True)
class PolicyOrigin:
    """Budget, data and checkpoint behind a multiplier; ``None`` where a value and a cost were given without one."""

    budget: Budget
    data: DataSource
    checkpoint: CheckpointSource | None = None

    def lines(self) -> list[str]:
        """One line of text for each of the three."""
        checkpoint = "none: values and costs were given" if self.checkpoint is None else str(self.checkpoint)
        return [f"budget: {self.budget}", f"data: {self.data}", f"checkpoint: {checkpoint}"]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> PolicyOrigin:
        """Inverse of :meth:`to_dict`."""
        checkpoint = state["checkpoint"]
        return cls(
            Budget(**state["budget"]),
            DataSource(**state["data"]),
            None if checkpoint is None else CheckpointSource(**checkpoint),
        )


def content_hash(path: str | Path) -> str:
    """SHA-256, in hex, of a file; of a folder, over the names and hashes of all its files, wherever it lies.

    Raises:
        InputError: if there is nothing to read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            digest = hashlib.sha256()
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                digest.update(f"{file.relative_to(path).as_posix()}\0{content_hash(file)}\n".encode())
            return digest.hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise InputError(
            f"{str(path)!r} cannot be read: {e.strerror or e}", "a file or folder that is there", "check the path"
        ) from e
