"""Versions of what writes a checkpoint."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("lightning_budget", "torch", "torchrec", "fbgemm-gpu", "lightning")


def versions() -> dict[str, str]:
    """Version of each package, ``unknown`` for one that is not installed as a distribution."""

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "unknown"

    return {package: of(package) for package in PACKAGES}
