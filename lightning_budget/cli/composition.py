"""Compose the config once before Hydra does, so that a mistake is told in one line and before any work."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError

from lightning_budget.cli.diagnosis import broken_config, explain, group_options, nearest
from lightning_budget.errors import InputError

MAX_VALUES = 50
"""How many values of one swept key are tried before the sweep starts."""


def check_command_line(config_folder: Path, config_name: str) -> None:
    """Compose the config of ``sys.argv`` and of every value of a sweep.

    Command lines that name their own config folder or only ask for information are left to Hydra.

    Raises:
        InputError: a mistyped key, an unknown option, a value of the wrong type, a value that must be given.
    """
    args = get_args_parser().parse_args()
    if args.help or args.hydra_help or args.info or args.shell_completion or args.experimental_rerun:
        return
    if args.config_dir or args.config_path:
        return
    name = args.config_name or config_name
    if not (config_folder / name).with_suffix(".yaml").is_file():
        names = sorted(p.stem for p in config_folder.glob("*.yaml"))
        raise InputError(
            f"no config {name!r} in {config_folder}", ", ".join(names), nearest(name, names, "--config-name={}")
        )
    overrides = [_parse(text) for text in args.overrides]
    sweeping = args.multirun or any(o.key_or_group == "hydra.mode" and o.value() == "MULTIRUN" for o in overrides)
    with initialize_config_dir(str(config_folder.resolve()), version_base="1.3"):
        for line in _lines(overrides) if sweeping else [args.overrides]:
            cfg = _compose(name, line)
            if not args.cfg:
                _check_values(cfg)


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, equals, _ = text.partition("=")
        fix = f"quote special characters, as in '{key}=\"a value\"'" if equals else f"write {key}=<value>"
        raise InputError(f"cannot read {text!r} ({error})", "key=value, +key=value, ~key", fix) from error


def _lines(overrides: list[Override]) -> list[list[str]]:
    """One command line for each value of each swept key, the others at their first."""
    values = []
    for override in overrides:
        text = [override.input_line or ""]
        if override.is_choice_sweep() or override.is_range_sweep():
            swept = islice(override.sweep_string_iterator(), MAX_VALUES)
            text = [f"{override.get_key_element()}={value}" for value in swept]
        # Searches over intervals and globs are the sweeper's business.
        elif override.is_sweep_override():
            text = []
        if text:
            values.append(text)
    first = [v[0] for v in values]
    return [first] + [[*first[:i], text, *first[i + 1 :]] for i, v in enumerate(values) for text in v[1:]]


def _compose(name: str, overrides: list[str]) -> DictConfig:
    try:
        return compose(name, overrides)
    except Exception as error:
        _blame(name, overrides, error)


def _blame(name: str, overrides: list[str], error: Exception) -> NoReturn:
    """Add one override at a time, until the one that fails is found."""
    try:
        cfg = compose(name, [], return_hydra_config=True)
    except Exception as broken:
        if not any(group_options(_parse(text).key_or_group) for text in overrides):
            raise broken_config(name, broken) from broken
        cfg = OmegaConf.create()
    good: list[str] = []
    for text in sorted(overrides, key=_rank):
        try:
            cfg = compose(name, [*good, text], return_hydra_config=True)
        except Exception as cause:
            raise explain(_parse(text), cfg, cause) from cause
        good.append(text)
    raise broken_config(name, error) from error


def _rank(override: str) -> int:
    """Where to look for configs comes first, and choices of groups before keys that they bring."""
    key = _parse(override).key_or_group
    return 0 if key == "hydra.searchpath" else 1 if group_options(key) else 2


def _check_values(cfg: DictConfig) -> None:
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise InputError(f"no value for {', '.join(missing)}", "a value for each", f"add {missing[0]}=<value>")
        OmegaConf.to_container(cfg, resolve=True)
    except InterpolationKeyError as error:
        raise InputError(
            f"{error.full_key} refers to what is not there ({str(error).splitlines()[0]})",
            "a key of the config",
            f"give {error.full_key}=<value>",
        ) from error
    except InterpolationResolutionError:
        # Resolvers such as ${hydra:...} answer only inside the job.
        pass
