"""All bootstrap resamples of a ranking in one sweep over its rows: AUCC, and the areas under uplift and Qini curves."""

from __future__ import annotations

import numba as nb
import numpy as np

from lightning_budget.metrics.functional.compiled.sweep import draw

_TINY = np.finfo(np.float64).tiny

_loop = nb.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "reassoc"})


@_loop
def totals(hashed, treated, weight, cost, value, signed, keys, edges, sums, row):
    """Sums over control and over the arm in every resample.

    Args:
        hashed: ``[n]`` uint64, of the user of each row; treated: ``[n]`` bool; weight: ``[n]`` sample weights.
        cost, value: ``[n]``, times the weights; signed: whether a cost is below 0.
        keys: ``[R / 2]``, R even.
        sums: ``[2, 4, R]`` of weight, cost, value and absolute cost for control and the arm, added to.
        row: ``[R]``, made as small as the smallest weight that the resample has.
    """
    resamples = sums.shape[2]
    pairs, counts = np.zeros(len(keys), np.uint32), np.zeros(2 * len(keys), np.uint16)
    halves = pairs.view(np.uint16)
    for i in range(len(hashed)):
        draw(hashed[i], keys, edges, pairs, halves, counts)
        arm = sums[1 if treated[i] else 0]
        mass, costs, values = arm[0], arm[1], arm[2]
        w, x, y = weight[i], cost[i], value[i]
        for r in range(np.uintp(resamples)):
            n = np.float64(counts[r])
            mass[r] += n * w
            costs[r] += n * x
            values[r] += n * y
        if signed:
            size = abs(cost[i])
            for r in range(np.uintp(resamples)):
                arm[3, r] += np.float64(counts[r]) * size
        if 0.0 < w < 1.0:
            for r in range(resamples):
                if counts[r] > 0:
                    row[r] = min(row[r], np.float64(counts[r]) * w)


@_loop
def cut_rewards(hashed, ends, treated, weight, cost, value, scale, total, slack, row, parts, keys, edges, out):
    """Sum of the rewards at the cuts of R resamples; see ``aucc``.

    Args:
        hashed, treated, weight, cost, value: ``[n]`` in order of the ranking, as for :func:`totals`.
        ends: ``[n]`` whether a group of equal scores ends here.
        scale: ``[2, R]``, that turns a row of control and of the arm into its change of Δ.
        total: ``[2, R]``, total Δcost and Δreward; slack: ``[R]``, by which a cut may be missed; row: ``[R]``.
        parts: Q; keys: ``[ceil(R / 2)]``; out: ``[R]``, written, NaN where a total is not above 0.
    """
    resamples = len(out)
    pairs, counts = np.zeros(len(keys), np.uint32), np.zeros(2 * len(keys), np.uint16)
    halves = pairs.view(np.uint16)
    run_cost, run_value, mass = np.zeros(resamples), np.zeros(resamples), np.zeros(resamples)
    before_cost, before_value = np.zeros(resamples), np.zeros(resamples)
    cuts, target = np.ones(resamples, np.int64), np.full(resamples, np.inf)
    for r in range(resamples):
        defined = total[0, r] > parts * slack[r] and total[1, r] > 0.0
        out[r] = 0.0 if defined else np.nan
        if defined and parts > 1:
            target[r] = total[0, r] / parts - slack[r]
    grouped = False
    for i in range(len(hashed)):
        if not ends[i] and not grouped:
            before_cost[:], before_value[:], mass[:] = run_cost, run_value, 0.0
            grouped = True
        draw(hashed[i], keys, edges, pairs, halves, counts)
        change = scale[1 if treated[i] else 0]
        w, x, y, look = weight[i], cost[i], value[i], 0
        for r in range(np.uintp(resamples)):
            m = np.float64(counts[r]) * change[r]
            c = run_cost[r] + m * x
            run_cost[r] = c
            run_value[r] += m * y
            look += np.int64(c >= target[r])
        if grouped:
            for r in range(np.uintp(resamples)):
                mass[r] += np.float64(counts[r]) * w
        if not ends[i]:
            continue
        if look:
            for r in range(resamples):
                if run_cost[r] < target[r]:
                    continue
                if grouped:
                    start_cost, start_value, held = before_cost[r], before_value[r], mass[r]
                else:
                    n = np.float64(counts[r]) * change[r]
                    start_cost, start_value = run_cost[r] - n * x, run_value[r] - n * y
                    held = np.float64(counts[r]) * w
                while run_cost[r] >= target[r]:
                    share = (target[r] - start_cost) / (run_cost[r] - start_cost)
                    share = min(max(np.ceil(share * held / row[r]) * row[r] / held, 0.0), 1.0)
                    out[r] += start_value + share * (run_value[r] - start_value)
                    cuts[r] += 1
                    target[r] = total[0, r] * cuts[r] / parts - slack[r] if cuts[r] < parts else np.inf
        grouped = False
    for r in range(resamples):
        out[r] += max(parts - cuts[r], 0) * total[1, r]


@_loop
def uplift_areas(hashed, ends, treated, weight, outcome, keys, edges, uplift, qini):
    """Area under the uplift curve, and above random under the Qini curve, of R resamples; see ``uplift_curve``.

    Args:
        hashed, ends, treated, weight: as for :func:`cut_rewards`; outcome: ``[n]``.
        keys: ``[ceil(R / 2)]``; uplift, qini: ``[R]``, written, NaN where an arm weighs nothing.
    """
    resamples = len(uplift)
    pairs, counts = np.zeros(len(keys), np.uint32), np.zeros(2 * len(keys), np.uint16)
    halves = pairs.view(np.uint16)
    # Of control and the arm: weight, weighted outcomes, their mean.
    mass, sums, mean = np.zeros((2, resamples)), np.zeros((2, resamples)), np.zeros((2, resamples))
    mass0, mass1, sums1, mean0, mean1 = mass[0], mass[1], sums[1], mean[0], mean[1]
    group, last_uplift, last_qini = np.zeros(resamples), np.zeros(resamples), np.zeros(resamples)
    uplift[:], qini[:] = 0.0, 0.0
    for i in range(len(hashed)):
        draw(hashed[i], keys, edges, pairs, halves, counts)
        arm = 1 if treated[i] else 0
        m, s, u, w, y = mass[arm], sums[arm], mean[arm], weight[i], outcome[i]
        for r in range(np.uintp(resamples)):
            n = np.float64(counts[r]) * w
            m[r] += n
            s[r] += n * y
            u[r] = s[r] / max(m[r], _TINY)
            group[r] += n
        if not ends[i]:
            continue
        for r in range(np.uintp(resamples)):
            gain = (mean1[r] - mean0[r]) * (mass0[r] + mass1[r])
            excess = sums1[r] - mean0[r] * mass1[r]
            uplift[r] += (last_uplift[r] + gain) * group[r]
            qini[r] += (last_qini[r] + excess) * group[r]
            last_uplift[r], last_qini[r], group[r] = gain, excess, 0.0
    for r in range(resamples):
        rows = mass0[r] + mass1[r] if mass0[r] > 0.0 and mass1[r] > 0.0 else np.nan
        uplift[r] = 0.5 * uplift[r] / (rows * rows)
        qini[r] = 0.5 * qini[r] / (rows * rows) - 0.5 * last_qini[r] / rows
