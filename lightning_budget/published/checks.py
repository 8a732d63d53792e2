"""A file against what was published: size, hash, rows, shares of the arms, means of the outcomes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning_budget.published.check import Check
from lightning_budget.published.description import Published, PublishedFile, Rate
from lightning_budget.published.source import Source
from lightning_budget.published.tally import Tally

LEVEL = 1e-4
"""Of every test of a sample: one random sample in ten thousand fails it."""
MIN_EXPECTED = 5.0
"""Fewer expected rows with a 1 (or in an arm) are too few for a normal approximation."""


def check_files(data: Published, hashes: Mapping[Source, str | None]) -> list[Check]:
    """Size and hash of every file; ``None`` for a hash that nothing could be compared with.

    A file of a published size must have the published hash. One of another size is another copy, or a sample: its
    content decides.
    """
    return [_check_file(data, source, digest) for source, digest in hashes.items()]


def comparable(data: Published, source: Source) -> list[PublishedFile]:
    """Published files of known hash in the source's format."""
    suffix = source.path.suffix
    return [f for f in data.files if f.sha256 and f.part == source.part and f.name.endswith(suffix)]


def _check_file(data: Published, source: Source, digest: str | None) -> Check:
    name, size = source.path.name, f"{source.size:,} B"
    known = comparable(data, source)
    if not known:
        return Check(f"file {name}", None, size, "size and hash not known to us for this format")
    same_size = [f for f in known if f.size == source.size]
    if any(f.sha256 == digest for f in known):
        return Check(f"file {name}", True, f"{size}, sha256 {digest}"[:40] + "…", "the publisher's, byte for byte")
    if same_size:
        return Check(
            f"file {name}",
            False,
            f"{size}, sha256 {digest}"[:40] + "…",
            f"sha256 {same_size[0].sha256}"[:24] + "… for a file of this size",
        )
    sizes = " or ".join(f"{f.size:,} B" for f in known)
    return Check(f"file {name}", None, size, f"{sizes} as published: another copy, or a sample")


def check_rows(tally: Tally) -> list[Check]:
    """Number of rows, arms, means and contradictions.

    With the published number of rows, arms and means must be as published, to the digits published. Fewer rows are
    tested as a random sample of them, each quantity at level 1e-4: shares of the arms by χ², means by z.
    """
    data = tally.data
    whole = tally.rows == data.rows
    checks = [_check_number(tally)]
    checks += _check_arms(tally, whole)
    checks += [_check_rate(tally, rate, whole) for rate in data.rates]
    for (a, b), rows in tally.broken.items():
        checks.append(Check(f"{a} without {b}", rows == 0, f"{rows:,} rows", "none"))
    return checks


def _check_number(tally: Tally) -> Check:
    published = tally.data.rows
    if published is None or tally.rows == published:
        return Check("rows", True if published else None, f"{tally.rows:,}", "as published")
    if tally.rows > published:
        return Check("rows", False, f"{tally.rows:,}", f"{published:,}: another data set, or rows repeated")
    return Check("rows", None, f"{tally.rows:,}", f"{published:,}: tested as a random sample of them, level {LEVEL:g}")


def _check_arms(tally: Tally, whole: bool) -> list[Check]:
    arms, found = tally.data.arms, tally.arm_rows
    text = " · ".join(f"{n:,}" for n in found)
    if whole and all(arm.rows is not None for arm in arms):
        expected = [arm.rows for arm in arms]
        return [Check("rows of the arms", list(found) == expected, text, " · ".join(f"{n:,}" for n in expected))]
    if any(arm.share is None for arm in arms):
        passed = True if (found > 0).all() else None
        return [Check("rows of the arms", passed, text, "shares not known to us")]
    shares = [arm.share or 0.0 for arm in arms]
    expected = [tally.rows * s for s in shares]
    planned = " · ".join(f"{s:.4g}" for s in shares)
    if min(expected) < MIN_EXPECTED:
        return [Check("shares of the arms", None, text, f"{planned}: too few rows to test")]
    p = chi_square_tail([float(n) for n in found], expected)
    seen = " · ".join(f"{n / tally.rows:.4g}" for n in found)
    return [Check("shares of the arms", p >= LEVEL, f"{seen}, p = {p:.2g}", f"{planned}, χ² at level {LEVEL:g}")]


def _check_rate(tally: Tally, rate: Rate, whole: bool) -> Check:
    n, mean, sd = tally.mean(rate)
    name = f"mean of {rate.column}" + ("" if rate.arm is None else f", {rate.arm}")
    published = f"{rate.value:.{rate.digits}f}"
    if whole:
        unit = 0.5 * 10**-rate.digits
        return Check(name, abs(mean - rate.value) <= unit * (1 + 1e-6), f"{mean:.{rate.digits + 1}f}", published)
    flag = tally.data.columns.get(rate.column) == "flag"
    if flag:
        sd = math.sqrt(rate.value * (1 - rate.value))
    if not n or sd == 0 or (flag and n * rate.value < MIN_EXPECTED):
        return Check(name, None, f"{mean:.{rate.digits}f}", f"{published}: too few rows to test")
    # The published figure may itself be off by half a unit.
    z = max(abs(mean - rate.value) - 0.5 * 10**-rate.digits, 0.0) / (sd / math.sqrt(n))
    p = math.erfc(z / math.sqrt(2))
    return Check(name, p >= LEVEL, f"{mean:.{rate.digits}f}, p = {p:.2g}", f"{published}, z at level {LEVEL:g}")


def chi_square_tail(observed: list[float], expected: list[float]) -> float:
    """P(χ² ≥ Σ (O − E)² / E) with K − 1 degrees of freedom."""
    # Imported where they run: the checks of a trial bring TorchRec with them.
    import torch

    from lightning_budget.trial.distributions import chi_square_p

    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    return float(chi_square_p(torch.tensor(statistic, dtype=torch.float64), float(len(observed) - 1)))
