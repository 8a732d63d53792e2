"""One JSON file per policy, to lie beside an exported model: readable, whole or untouched, no code in it."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_budget.allocation.pacing import PacedPolicy
from lightning_budget.allocation.price_policy import PricePolicy
from lightning_budget.atomic import atomic_path
from lightning_budget.errors import InputError

FORMAT, VERSION = "lightning_budget.policy", 1
KINDS: dict[str, type[PricePolicy] | type[PacedPolicy]] = {"price": PricePolicy, "paced": PacedPolicy}


def save_policy(policy: PricePolicy | PacedPolicy, path: str | Path) -> None:
    """Write a policy, every number to the last bit; of a paced one, where it stands too.

    Raises:
        InputError: if the file cannot be written.
    """
    (kind,) = (name for name, cls in KINDS.items() if type(policy) is cls)
    content = {"format": FORMAT, "version": VERSION, "kind": kind, **policy.to_dict()}
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as e:
        raise InputError(
            f"{path} cannot be written: {e.strerror or e}", "a writable folder", "create it, or name another one"
        ) from e


def load_policy(path: str | Path) -> PricePolicy | PacedPolicy:
    """Read a policy that :func:`save_policy` wrote.

    Raises:
        InputError: if the file is missing, damaged, no policy, or of a newer release.
    """
    fix = "give a .json file that save_policy wrote"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"policy {str(path)!r} cannot be read: {e.strerror or e}", "a file", fix) from e
    except ValueError as e:
        raise InputError(f"policy {str(path)!r} is no JSON ({type(e).__name__})", "a whole file", fix) from e
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} is no policy", f"a file of format {FORMAT}", fix)
    if content.get("version") != VERSION or content.get("kind") not in KINDS:
        raise InputError(
            f"{str(path)!r} has version {content.get('version')} and is of kind {content.get('kind')!r}",
            f"version {VERSION}, {' or '.join(KINDS)}",
            "read it with the release that wrote it, or save it again",
        )
    try:
        return KINDS[content["kind"]].from_dict(content)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as e:
        raise InputError(
            f"{str(path)!r} lacks a part of a policy ({type(e).__name__}: {e})", "a whole file", fix
        ) from e
