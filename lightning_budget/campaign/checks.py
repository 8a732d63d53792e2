"""What a campaign can be."""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING

from lightning_budget.campaign.randomization import PROPENSITIES
from lightning_budget.errors import InputError

if TYPE_CHECKING:
    from lightning_budget.campaign.campaign import Campaign

COUNTS = ("train_rows", "val_rows", "test_rows", "users", "train_days", "val_days", "test_days", "partition_rows")
# Beyond these a trial of usual size holds no purchase, one spend outweighs all others, or one user makes all rows.
RANGES = {
    "purchase_logit": (-8.0, 8.0, "-1.2 is the default, -2.2 halves the purchases"),
    "spend_sigma": (0.0, 2.0, "0.6 is the default"),
    "drift_base": (-4.0, 4.0, "0 is off; with 0.3 the last day has a sixth more purchases"),
    "drift_sensitivity": (-3.0, 3.0, "0 is off; with -0.5 coupons earn about half as much on the last day"),
    "weekly_base": (-4.0, 4.0, "0 is off, 0.3 a clear week"),
    "weekly_sensitivity": (-3.0, 3.0, "0 is off, 0.3 a clear week"),
    "repeat": (0.0, 3.0, "0 is all users alike, 1 the default, 2 gives 77 % of the rows to 1 % of the users"),
}


def check_campaign(campaign: Campaign) -> None:
    """Refuse arguments that make no campaign.

    Raises:
        InputError: naming the argument.
    """
    _check_types(campaign)
    for name in COUNTS:
        if getattr(campaign, name) < 1:
            raise InputError(f"{name}={getattr(campaign, name)}", "at least 1", f"raise {name}")
    _check_face_values(campaign.face_values)
    for name, example in (("newcomers", "lower newcomers"), ("zero_inflation", "0 is off")):
        if not 0 <= getattr(campaign, name) < 1:
            raise InputError(f"{name}={getattr(campaign, name)}", "a share in [0, 1)", example)
    for name, (low, high, example) in RANGES.items():
        if not low <= getattr(campaign, name) <= high:
            raise InputError(f"{name}={getattr(campaign, name)}", f"{low:g} to {high:g}", example)
    if campaign.spend_tail is not None and not 1 < campaign.spend_tail <= 100:
        raise InputError(
            f"spend_tail={campaign.spend_tail}",
            "a tail index above 1 (else the mean is infinite) and up to 100, or null",
            "2.5 is heavy with a finite variance",
        )
    _check_propensity(campaign)


def _check_types(campaign: Campaign) -> None:
    for field in fields(campaign):
        given, default = getattr(campaign, field.name), field.default
        if isinstance(default, tuple) or field.name == "propensity" or (given is None and default is None):
            continue
        if isinstance(default, bool):
            if not isinstance(given, bool):
                raise InputError(f"{field.name}={given!r}", "true, false", f"{str(default).lower()} is the default")
            continue
        wanted, name = (Integral, "a whole number") if isinstance(default, int) else (Real, "a number")
        if not isinstance(given, wanted) or isinstance(given, bool):
            usual = "null" if default is None else default
            raise InputError(f"{field.name}={given!r}", name, f"{usual} is the default")


def _check_face_values(face_values: tuple[float, ...]) -> None:
    control, *coupons = face_values or (None,)
    if control != 0 or not coupons or not all(isinstance(a, Real) and 0 < a < math.inf for a in coupons):
        raise InputError(
            f"face_values={list(face_values)}",
            "0 for control first, then values above 0",
            "put control's 0 in front",
        )
    if len({f"{a:g}" for a in coupons}) < len(coupons):
        raise InputError(f"face_values={list(face_values)}", "each value once", "remove what is repeated")


def _check_propensity(campaign: Campaign) -> None:
    given, k = campaign.propensity, len(campaign.face_values)
    if given is not None and given not in PROPENSITIES:
        raise InputError(f"propensity={given!r}", ", ".join(PROPENSITIES), "choose one of the allowed")
    if given not in (None, "tiers") and not campaign.uniform:
        raise InputError(
            f"uniform=false with propensity={given}", "propensity=tiers, or one of the two", "leave uniform out"
        )
    if given == "targeted" and not 0 < campaign.propensity_floor < 1 / k:
        raise InputError(
            f"propensity_floor={campaign.propensity_floor} for {k} arms",
            f"above 0 and below {1 / k:.3g}",
            f"propensity_floor={0.25 / k:.2g}",
        )
