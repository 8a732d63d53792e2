"""Karlan and List's matching grants, 2005."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightning_budget.published.description import Arm, Kind, Published, PublishedFile, Rate

ARMS = ("control", "1:1", "2:1", "3:1")
MISSING = -999
"""Code of what is missing."""

_COLUMNS: dict[str, Kind] = {
    **dict.fromkeys(("treatment", "treat_ratio2", "treat_ratio3"), "flag"),
    **dict.fromkeys(("treat_size25", "treat_size50", "treat_size100", "treat_sizeno"), "flag"),
    **dict.fromkeys(("treat_askd1", "treat_askd2", "treat_askd3"), "flag"),
    "out_amountgive": "double",
    "out_gavedum": "flag",
    "out_changeamtgive": "double",
    "hpa": "double",
    "ltmedmra": "flag",
    "freq": "int16",
    "years": "int16",
    "year5": "flag",
    "mrm2": "int16",
    "dormant": "flag",
    "female": "int16",
    "couple": "int16",
    "state50one": "flag",
    "nonlit": "int16",
    "cases": "int16",
    **dict.fromkeys(
        ("statecnt", "stateresponse", "stateresponset", "stateresponsec", "stateresponsetminc", "perbush"), "double"
    ),
    **dict.fromkeys(("close25", "red0", "blue0", "redcty", "bluecty"), "int16"),
    **dict.fromkeys(("pwhite", "pblack", "page18_39", "ave_hh_sz"), "double"),
    "median_hhincome": "int32",
    **dict.fromkeys(("powner", "psch_atlstba", "pop_propurban"), "double"),
    **dict.fromkeys(("years_missing", "mrm2_missing", "fem_missing", "couple_missing", "nonlit_missing"), "flag"),
    **dict.fromkeys(("cases_missing", "stateresponsetminc_missing", "perbush_missing", "close25_missing"), "flag"),
    **dict.fromkeys(("red0_missing", "blue0_missing", "redcty_missing", "bluecty_missing", "pwhite_missing"), "flag"),
    **dict.fromkeys(("pblack_missing", "page18_39_missing", "median_hhincome_missing"), "flag"),
    **dict.fromkeys(("psch_atlstba_missing", "pop_propurban_missing"), "flag"),
}
_CODED = tuple(name for name, kind in _COLUMNS.items() if kind != "flag")
_RESPONSE = "response of the donor's state to this very campaign: leakage"


def with_arm_and_cost(table: pa.Table, part: str, first_row: int) -> pa.Table:
    """Null in place of the code −999; ``arm``, ``ratio`` (dollars matched per dollar) and ``cost`` = ratio · gift."""
    for name in _CODED:
        column = table[name]
        coded = pc.call_function("equal", [column, pa.scalar(MISSING, column.type)])
        cleaned = pc.call_function("if_else", [coded, pa.scalar(None, column.type), column])
        table = table.set_column(table.schema.get_field_index(name), name, cleaned)
    given, two, three = (table[name].to_numpy() for name in ("treatment", "treat_ratio2", "treat_ratio3"))
    ratio = given * (1 + two + 2 * three)
    arm = pa.array(np.array(ARMS)[ratio], pa.string())
    cost = pc.call_function("multiply", [pa.array(ratio.astype(np.float64)), table["out_amountgive"].combine_chunks()])
    return (
        table.append_column("arm", arm)
        .append_column("ratio", pa.array(ratio.astype(np.int8)))
        .append_column("cost", cost)
    )


KARLAN_LIST = Published(
    name="karlan_list",
    title="Matching grants of Karlan and List: 50,083 letters to former donors, control and three match ratios",
    where="github.com/gsbDBI/ExperimentData, Charitable/ProcessedData/charitable_withdummyvariables.csv, or "
    "github.com/itamarcaspi/experimentdatar, data/charitable.rda (in R: write.csv(charitable, row.names = FALSE))",
    licence="CC0 1.0 (of experimentdatar; the terms of the first depositor were not checked)",
    allows="any use",
    citation="Karlan and List, Does Price Matter in Charitable Giving? Evidence from a Large-Scale Natural Field "
    "Experiment, American Economic Review 97(5), 2007",
    files=(PublishedFile("charitable_withdummyvariables.csv"),),
    rows=50_083,
    columns=_COLUMNS,
    treatment="arm",
    arms=(
        Arm("control", 3 / 9, 16_687),
        Arm("1:1", 2 / 9, 11_133),
        Arm("2:1", 2 / 9, 11_134),
        Arm("3:1", 2 / 9, 11_129),
    ),
    rates=(
        Rate("out_gavedum", 0.0179, 4, "control"),
        Rate("out_gavedum", 0.0207, 4, "1:1"),
        Rate("out_gavedum", 0.0226, 4, "2:1"),
        Rate("out_gavedum", 0.0227, 4, "3:1"),
        Rate("out_amountgive", 0.813, 3, "control"),
        Rate("out_amountgive", 0.937, 3, "1:1"),
        Rate("out_amountgive", 1.026, 3, "2:1"),
        # Without two donors whose amounts the file lacks.
        Rate("out_amountgive", 0.933, 3, "3:1"),
    ),
    implies=(("treat_ratio2", "treatment"), ("treat_ratio3", "treatment")),
    nullable=frozenset(_CODED),
    required=("out_amountgive",),
    dropped={
        "out_changeamtgive": "known only after treatment",
        "stateresponse": _RESPONSE,
        "stateresponset": _RESPONSE,
        "stateresponsec": _RESPONSE,
        "stateresponsetminc": _RESPONSE,
        "stateresponsetminc_missing": _RESPONSE,
        "statecnt": "counted over the campaign: not sure to be known before it",
    },
    derive=with_arm_and_cost,
    unknown="size and hash of the file",
    note="−999 becomes null. treat_size* and treat_askd* belong to the offer, are 0 in control, and are no features",
)
