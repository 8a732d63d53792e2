"""All data sets by name."""

from __future__ import annotations

from difflib import get_close_matches

from lightning_budget.errors import InputError
from lightning_budget.published.criteo import CRITEO, CRITEO_HYBRID
from lightning_budget.published.description import Published
from lightning_budget.published.hillstrom import HILLSTROM
from lightning_budget.published.karlan_list import KARLAN_LIST
from lightning_budget.published.mt_lift import MT_LIFT

PUBLISHED: dict[str, Published] = {d.name: d for d in (CRITEO, CRITEO_HYBRID, HILLSTROM, MT_LIFT, KARLAN_LIST)}
"""Data sets that come from a publisher's file."""
GENERATED: dict[str, str] = {
    "criteo_mt7": "Criteo-MT7: eight discount tiers with oracle outcomes, generated from the features of criteo",
    "campaign_mt7": "the same outcomes from the features of the embedded campaign: needs no file",
}
"""Data sets that are generated."""


def known_name(name: str) -> str:
    """The name itself.

    Raises:
        InputError: if no data set has it.
    """
    names = [*PUBLISHED, *GENERATED]
    if name in names:
        return name
    close = get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.5)
    fix = (
        f"prepare_data.py {close[0]}" if close else "choose one of them; your own trial needs no preparing: data=table"
    )
    raise InputError(f"no data set {name!r}", ", ".join(names), fix)
