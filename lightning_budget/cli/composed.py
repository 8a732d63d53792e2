"""A config composed in the middle of a program, as the command line would compose it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_budget.cli.shell import config_dir, register_schemas
from lightning_budget.errors import InputError

Config = DictConfig


def compose_config(name: str, overrides: Sequence[str]) -> Config:
    """The config ``name`` with the overrides, in any process and also inside a running command.

    Raises:
        InputError: if it cannot be composed.
    """
    register_schemas()
    running = get_gh_backup()
    # A running command has initialized Hydra, which then refuses to be initialized.
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
            return _composed(name, overrides)
    finally:
        restore_gh_from_backup(running)


def _composed(name: str, overrides: Sequence[str]) -> Config:
    try:
        return compose(name, list(overrides))
    except (HydraException, OmegaConfBaseException) as e:
        first = str(e).splitlines()[0]
        raise InputError(
            f"{name} with {' '.join(overrides)}: {first}", "overrides of that command", "mend the override"
        ) from e


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of the config with other values of keys that it has, by their dotted names.

    Raises:
        InputError: for a key that it does not have, or a value of the wrong type.
    """
    changed = config.copy()
    for key, value in values.items():
        parent = OmegaConf.select(changed, key.rpartition(".")[0]) if "." in key else changed
        if not isinstance(parent, DictConfig) or key.rpartition(".")[2] not in parent:
            raise InputError(f"no key {key!r} in the config", "keys of the config", "mend the search space")
        try:
            OmegaConf.update(changed, key, value)
        except OmegaConfBaseException as e:
            raise InputError(f"{key}={value!r}: {str(e).splitlines()[0]}", "a value of its type", "mend it") from e
    return changed


def fingerprint(config: Config, without: Sequence[str] = ()) -> str:
    """16 hexadecimal digits of all values, but those of the top-level keys ``without``."""
    values = {key: value for key, value in plain(config).items() if key not in without}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plain(config: Any) -> Any:
    """Resolved, in dictionaries and lists; what is no config stays as it is."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
