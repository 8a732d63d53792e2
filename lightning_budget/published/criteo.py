"""CRITEO-UPLIFT v2.1, with the splits that papers published for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet

from lightning_budget.published.check import Check
from lightning_budget.published.description import Arm, Kind, Labels, Published, PublishedFile, Rate
from lightning_budget.published.hybrid import HYBRID, hybrid_roles
from lightning_budget.published.splits import PRINTED, SPLITS, dfcl_split, shuffle_digest

FEATURES = tuple(f"f{i}" for i in range(12))
_FEATURES: dict[str, Kind] = dict.fromkeys(FEATURES, "double")
_EXPOSURE = "Exposure is known only after treatment, and no feature."


def split_of_dfcl(path: Path) -> Labels:
    """The 60/10/30 split of the rows of a Parquet file."""
    with pyarrow.parquet.ParquetFile(path) as file:
        return Labels(dfcl_split(file.metadata.num_rows), SPLITS)


def split_of_bi_dfcl(path: Path) -> Labels:
    """Three randomized splits, observational rows, and rows that are used up."""
    return Labels(hybrid_roles(path, FEATURES), HYBRID)


def shuffle_is_dfcls(path: Path) -> Check:
    """Whether the shuffle's ends are those that DFCL's notebook prints."""
    digest = shuffle_digest(path)
    return Check("shuffle of DFCL", digest == PRINTED, f"its ends, sha256 {digest[:8]}…", f"as printed, {PRINTED[:8]}…")


CRITEO = Published(
    name="criteo",
    title="CRITEO-UPLIFT v2.1: 13,979,592 users of several incrementality tests, two arms",
    where="ailab.criteo.com/criteo-uplift-prediction-dataset, or huggingface.co/datasets/criteo/criteo-uplift; "
    "the file is criteo-research-uplift-v2.1.csv.gz",
    licence="CC BY-NC-SA 4.0",
    allows="non-commercial use, with attribution, passed on under the same licence; no attempt to recover features or "
    "identities",
    citation="Diemert, Betlei, Renaudin, Amini, A Large Scale Benchmark for Uplift Modeling, AdKDD 2018; "
    "arXiv 2111.10106",
    files=(
        PublishedFile(
            "criteo-research-uplift-v2.1.csv.gz",
            311_422_618,
            "2716e1bf0fd157a93b5bf86924d9088419dfbac2022c6cd90030220634f616dc",
        ),
        PublishedFile(
            "criteo-research-uplift-v2.1.csv",
            3_248_115_221,
            "e4d7c710ca1f38e523309d0f8a0745d1b53e7392d51f20d1088b6cfeaef222ef",
        ),
    ),
    rows=13_979_592,
    columns={**_FEATURES, "treatment": "flag", "conversion": "flag", "visit": "flag", "exposure": "flag"},
    treatment="treatment",
    arms=(Arm("0", 0.15, 2_096_937), Arm("1", 0.85, 11_882_655)),
    rates=(
        Rate("visit", 0.04699, 5),
        Rate("visit", 0.038201, 6, "0"),
        Rate("visit", 0.048543, 6, "1"),
        Rate("conversion", 0.00292, 5),
        Rate("conversion", 0.001938, 6, "0"),
        Rate("conversion", 0.003089, 6, "1"),
        Rate("exposure", 0.0306, 4),
    ),
    implies=(("conversion", "visit"), ("exposure", "treatment")),
    split=split_of_dfcl,
    verify=shuffle_is_dfcls,
    note=f"{_EXPOSURE} Splits: DFCL's, 60/10/30",
)

CRITEO_HYBRID = replace(
    CRITEO,
    name="criteo_hybrid",
    title="CRITEO-UPLIFT v2.1 (Hybrid): 45 % of the rows, randomized, and 25 % that a policy chose",
    split=split_of_bi_dfcl,
    aside=("obs",),
    note=f"{_EXPOSURE} A reconstruction of the split of Bi-DFCL, arXiv 2510.19517: see "
    "lightning_budget.published.hybrid. The policy's rows, whose treatment is not random, are in …_obs.parquet",
)
