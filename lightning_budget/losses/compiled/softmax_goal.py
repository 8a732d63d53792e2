"""The softmax-smoothed goal and its gradient by the predictions, in one walk over the users.

A few users at a time, whose scores, gains and shares for one multiplier stay in the first-level cache; arms outside,
users inside, so that every innermost loop runs along contiguous memory and becomes vector instructions.
"""

from __future__ import annotations

import numpy as np
from numba import njit

USERS = 256
"""Users of a block."""

F = np.float32
# NaN and infinities keep their meaning; sums over users may be taken in another order.
FLAGS = {"nsz", "contract", "arcp", "reassoc"}


@njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
def _scores(v, c, price, first, n, score, best):
    for j in range(v.shape[0]):
        a, vj, cj = score[j], v[j][first : first + n], c[j][first : first + n]
        if j == 0:
            for i in range(n):
                a[i] = best[i] = vj[i] - price * cj[i]
        else:
            for i in range(n):
                x = vj[i] - price * cj[i]
                a[i] = x
                best[i] = x if x > best[i] else best[i]


@njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
def _exponentials(score, best, width, n, out, bits):
    """``exp((score − best) / width)``, 0 below e⁻⁸⁸: 2ᵏ from its exponent bits, times e^r by Cephes' polynomial."""
    power = bits.view(np.float32)
    for i in range(n):
        u = (score[i] - best[i]) / width
        u = F(-88) if u < F(-88) else u
        k = np.int32(u * F(1.44269504) - F(0.5))
        r = u - F(k) * F(0.693359375) + F(k) * F(2.12194440e-4)
        p = F(1.9875691500e-4) * r + F(1.3981999507e-3)
        p = p * r + F(8.3334519073e-3)
        p = p * r + F(4.1665795894e-2)
        p = p * r + F(1.6666665459e-1)
        p = p * r + F(5.0000001201e-1)
        out[i] = p * r * r + r + F(1)
        bits[i] = (k + np.int32(127)) << np.int32(23)
    for i in range(n):
        out[i] *= power[i]


@njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
def _gains(arm, base, v_share, c_share, factor, model_v, model_c, given, weight, y_v, y_c, n, out):
    """``m + 1[t = j] ω (y − m)`` of one arm."""
    for i in range(n):
        m = base + v_share * model_v[i] + c_share * model_c[i]
        matched = factor * weight[i] if given[i] == arm else F(0)
        out[i] = m + matched * (v_share * y_v[i] + c_share * y_c[i] - m)


@njit(fastmath=FLAGS, error_model="numpy", nogil=True, cache=True)
def softmax_goal(
    v, c, model_v, model_c, given, weight, y_v, y_c, price, width, v_share, c_share, base, factor, entropy, d_v, d_c
):
    """Sum of the goal over B multipliers and N users; adds its gradient to ``d_v`` and ``d_c``.

    Args:
        v, c, model_v, model_c: ``[K, N]`` float32, contiguous; given: ``[N]`` int32; weight, y_v, y_c: ``[N]``.
        price, width, v_share, c_share: ``[B]``; base, factor: ``[B, K]``; entropy: float32.
        d_v, d_c: ``[K, N]`` float32, contiguous, changed in place.
    """
    arms, users = v.shape
    score, e, gain = np.empty((arms, USERS), F), np.empty((arms, USERS), F), np.empty((arms, USERS), F)
    best, z, goal, earned = np.empty(USERS, F), np.empty(USERS, F), np.empty(USERS, F), np.empty(USERS, F)
    bits = np.empty(USERS, np.int32)
    total = 0.0
    for first in range(0, users, USERS):
        n = min(USERS, users - first)
        last = first + n
        t, w, yv, yc = given[first:last], weight[first:last], y_v[first:last], y_c[first:last]
        for b in range(len(price)):
            _scores(v, c, price[b], first, n, score, best)
            z[:] = 0
            goal[:] = 0
            earned[:] = 0
            for j in range(arms):
                a, ej, g = score[j], e[j], gain[j]
                _exponentials(a, best, width[b], n, ej, bits)
                mv, mc = model_v[j][first:last], model_c[j][first:last]
                shares = v_share[b], c_share[b]
                _gains(np.int32(j), base[b, j], shares[0], shares[1], factor[b, j], mv, mc, t, w, yv, yc, n, g)
                for i in range(n):
                    z[i] += ej[i]
                    goal[i] += ej[i] * g[i]
                    g[i] -= entropy * a[i]
                    earned[i] += ej[i] * g[i]
            part = F(0)
            for i in range(n):
                z[i] = F(1) / z[i]
                earned[i] *= z[i]
                part += goal[i] * z[i]
            total += part
            # The width last: 0 / width is 0 however small it is, where (g − earned) / width may overflow.
            narrow = F(1) / width[b]
            for j in range(arms):
                ej, g, dv, dc = e[j], gain[j], d_v[j][first:last], d_c[j][first:last]
                for i in range(n):
                    slope = ej[i] * (g[i] - earned[i]) * z[i] * narrow
                    dv[i] += slope
                    dc[i] -= price[b] * slope
    return total
