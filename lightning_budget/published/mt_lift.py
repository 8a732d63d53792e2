"""MT-LIFT: coupons of a food delivery platform, 2024."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lightning_budget.hashing import hashed_uniform
from lightning_budget.published.description import Arm, Kind, Published, PublishedFile, Rate

FEATURES = tuple(f"f{i}" for i in range(99))
VALIDATION = 0.1
"""Share of the publisher's training rows that become the validation split."""
_FEATURES: dict[str, Kind] = dict.fromkeys(FEATURES, "double")


def with_split(table: pa.Table, part: str, first_row: int) -> pa.Table:
    """Add ``split``: the publisher's test rows, and of the training rows one in ten, by a hash, to val."""
    split = np.full(len(table), part, object)
    if part == "train":
        rows = np.arange(first_row, first_row + len(table))
        split[hashed_uniform(rows, 0, "mt_lift/val") < VALIDATION] = "val"
    return table.append_column("split", pa.array(split, pa.string()))


MT_LIFT = Published(
    name="mt_lift",
    title="MT-LIFT: 5,541,842 coupon impressions of Meituan food delivery, five arms",
    where="github.com/MTDJDSP/MT-LIFT names the drives; a folder with train.csv and test.csv",
    licence="none stated by the publisher",
    allows="released for research, says the paper; ask the authors for anything else, and before redistributing",
    citation="Huang, Wang, Gao, Wei, Li, Luo, Zhu, Xiao, Luo, Entire Chain Uplift Modeling with Context-Enhanced "
    "Learning for Intelligent Marketing, WWW 2024 Companion; arXiv 2402.03379",
    files=(PublishedFile("train.csv", part="train"), PublishedFile("test.csv", part="test")),
    rows=5_541_842,
    columns={**_FEATURES, "treatment": "int16", "click": "flag", "conversion": "flag"},
    treatment="treatment",
    arms=tuple(Arm(str(i)) for i in range(5)),
    rates=(Rate("click", 0.3349, 4), Rate("conversion", 0.0682, 4)),
    # Whether features have nulls is not known to us.
    nullable=frozenset(FEATURES),
    derive=with_split,
    unknown="size and hash of the files, shares of the arms, what the arms cost, the meaning of the features",
    note="the ladder of costs in the preset is stated there, not by the publisher. Splits: the publisher's test file; "
    "one in ten rows of the training file becomes val",
)
