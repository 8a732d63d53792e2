"""From an override that Hydra refuses to one line: what, where, allowed, fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import Container, DictConfig, ListConfig
from omegaconf.errors import ValidationError

from lightning_budget.errors import InputError


def group_options(group: str) -> list[str]:
    """The configs of a group, without those that start with an underscore; empty when there is no such group."""
    names = GlobalHydra.instance().config_loader().get_group_options(group)
    return [name for name in names if not name.startswith("_")]


def nearest(word: str, words: Sequence[str], template: str = "{}") -> str:
    """``did you mean '…'?`` or, when nothing is near, an invitation to choose."""
    close = get_close_matches(word, words, n=1, cutoff=0.6)
    return f"did you mean {template.format(close[0])!r}?" if close else "choose one of those allowed"


def broken_config(name: str, error: Exception) -> InputError:
    """The config files themselves do not compose."""
    return InputError(f"config {name!r} does not compose: {_sentence(error)}", "a valid config", "mend that file")


def explain(override: Override, cfg: DictConfig, error: Exception) -> InputError:
    """Why ``override`` does not fit.

    Args:
        override: the one that was refused.
        cfg: the config composed without it.
        error: what Hydra said.
    """
    text, key = override.input_line or "", override.key_or_group
    options = group_options(key)
    if override.is_sweep_override():
        return InputError(f"{text!r} lists several values", "one value", "add -m to run each, or write a list as [1,2]")
    if options:
        return _explain_choice(override, options, error)
    if override.is_add():
        return InputError(f"cannot add {text!r}: {_sentence(error)}", "+ for new keys", f"try {text.lstrip('+')!r}")
    node: Any = cfg
    parent: Any = None
    path: list[str] = []
    parts = key.split(".")
    for part in parts:
        if not _has(node, part):
            return _unknown_key(cfg, node, path, part, key)
        parent, node = node, _child(node, part)
        path.append(part)
    if isinstance(error.__cause__, ValidationError):
        value = text.partition("=")[2]
        fix = (
            f"set {key}.{next(iter(node), '')}=<value>"
            if isinstance(node, DictConfig)
            else f"give {key}=<such a value>"
        )
        return InputError(f"value {value!r} for {key!r}", _kind(parent, parts[-1]), fix)
    return InputError(f"cannot apply {text!r}: {_sentence(error)}", "see --cfg job", "leave it out or mend it")


def _explain_choice(override: Override, options: list[str], error: Exception) -> InputError:
    key, value = override.key_or_group, override.value()
    for choice in value if isinstance(value, list) else [value]:
        if str(choice) not in options:
            fix = nearest(str(choice), options, key + "={}")
            return InputError(f"unknown {key} {str(choice)!r}", ", ".join(options), fix)
    if "No match in the defaults list" in str(error):
        line = override.input_line
        return InputError(f"{line!r} replaces a choice that the config does not make", "+ to add it", f"write +{line}")
    return InputError(
        f"{override.input_line!r} does not fit: {_sentence(error)}", ", ".join(options), "mend that config"
    )


def _unknown_key(cfg: DictConfig, node: Any, path: list[str], part: str, key: str) -> InputError:
    if not isinstance(node, Container):
        return InputError(
            f"unknown key {key!r}", f"{'.'.join(path)!r} is a single value", f"give {'.'.join(path)}=<value>"
        )
    if isinstance(node, ListConfig):
        allowed = f"0 to {len(node) - 1}" if len(node) else "an empty list has no entries"
        return InputError(f"unknown entry {key!r}", allowed, f"replace the list: {'.'.join(path)}=[...]")
    prefix = "".join(f"{p}." for p in path)
    names = [str(k) for k in node]
    if not path:
        names = sorted({*names, *GlobalHydra.instance().config_loader().list_groups("")} - {"hydra"})
    template = prefix + "{}"
    if not get_close_matches(part, names, n=1):
        # The right name at the wrong place: `max_epochs` for `trainer.max_epochs`.
        leaf = key.rpartition(".")[2]
        elsewhere = {k.rpartition(".")[2]: k for k in _leaves(cfg) if not k.startswith("hydra")}
        close = get_close_matches(leaf, elsewhere, n=1, cutoff=0.8)
        if close:
            return InputError(
                f"unknown key {key!r}", ", ".join(prefix + n for n in names), f"did you mean {elsewhere[close[0]]!r}?"
            )
    return InputError(f"unknown key {key!r}", ", ".join(prefix + n for n in names), nearest(part, names, template))


def _has(node: Any, part: str) -> bool:
    if isinstance(node, ListConfig):
        return part.isdigit() and int(part) < len(node)
    return isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and part in node.keys()  # noqa: SIM118


def _child(node: Any, part: str) -> Any:
    return node._get_node(int(part) if isinstance(node, ListConfig) else part)


def _leaves(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    if cfg._is_none() or cfg._is_missing():
        return
    for key in cfg:
        yield f"{prefix}{key}"
        node = cfg._get_node(key)
        if isinstance(node, DictConfig):
            yield from _leaves(node, f"{prefix}{key}.")


def _kind(parent: Any, part: str) -> str:
    node = _child(parent, part)
    kind = node._metadata.ref_type
    if isinstance(node, Container):
        words = "keys of its own, such as " + ", ".join(map(str, node)) if isinstance(node, DictConfig) else "a list"
    elif isinstance(kind, type) and issubclass(kind, Enum):
        words = ", ".join(kind.__members__)
    else:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))
    return words + (" or null" if node._metadata.optional and kind is not Any else "")


def _sentence(error: Exception) -> str:
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    where = next((line for line in lines if line.startswith("full_key:")), "")
    return " ".join(f"{lines[0] if lines else type(cause).__name__} {where.replace('full_key:', 'at')}".split())
