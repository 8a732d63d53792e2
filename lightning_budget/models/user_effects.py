r"""What a user's own conversions tell beyond his features: random effects, fitted without a gradient.

**Size.** The logarithm of the size of a conversion of user u under arm j is taken as

.. math:: \log y = f_j(x) + a_u + s_u d_j + \varepsilon, \qquad a_u \sim N(0, \kappa_a \sigma^2),\;
          s_u \sim N(0, \kappa_s \sigma^2),\; \varepsilon \sim N(0, \sigma^2), \qquad d_j = j / (K - 1)

with the learner's own :math:`f_j`. Sums over a user's rows are all it takes: the posterior means of
:math:`(a_u, s_u)` have a closed form, and both variance ratios are those of the highest marginal likelihood, so that
effects that are not there come out as zero.

**Payment.** Where conversions alone cost, and not all of them, the conversion i of user u is paid with probability

.. math:: \sigma(\operatorname{logit} q_i + b_u), \qquad b_u \sim N(0, \kappa_b),

with the learner's own :math:`q_i`. Of first order in :math:`b_u` the score :math:`s = \sum_i (paid_i - q_i)` is normal
about :math:`b_u w` with variance :math:`w = \sum_i q_i (1 - q_i)`, so that :math:`b_u` has the posterior mean
:math:`\kappa_b s / (1 + \kappa_b w)` and the marginal likelihood is in closed form again: one step of penalised
quasi-likelihood. A shift of the logit by :math:`b_u` would draw probabilities towards ½, and total cost with them, so
the effect is put to use as it was found, of first order: the probability becomes :math:`q + q (1 - q) b_u`, whose mean
is q, but no less than a fiftieth of q, and likewise on the way to 1.

Sources: Laird, Ware 1982 (random effects); Robinson 1991, *That BLUP is a good thing*; Breslow, Clayton 1993 (penalised
quasi-likelihood).
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

RATIOS = (0.0, *(2.0**i for i in range(-9, 2)))
"""Variances of effects among which the likelihood chooses: on size in units of the noise, on payment of the logit."""
LEAST = 6.0
"""Conversions, or Σ q (1 − q), below which nothing is fitted."""
FLOOR = 0.02
"""Least factor of a probability of payment, and of the one of none."""
SAMPLE = 200_000
"""Users by whom the ratios are chosen."""
CHUNK = 1 << 20

SIZE, SUMS = 6, 8
"""Of a user's conversions: six sums of their sizes, then two of their payment; see :func:`sums_of`."""
EFFECTS = 3
"""Of a user: a, s and b."""


def sums_of(converted: Tensor, excess: Tensor, dose: Tensor, paid: Tensor, q: Tensor) -> Tensor:
    """What n rows add to the sums ``[n, 8]``: 1, d, d², e, d e and e² of conversions, paid − q and q (1 − q).

    Args:
        converted: 1 for conversions, else 0; excess: e = log y − f of those; dose: d; paid: 1 or 0; q: its probability,
            NaN where there is nothing to learn of it. ``[n]`` each.
    """
    e, d = torch.where(converted > 0, excess, 0.0), dose
    size = torch.stack((torch.ones_like(e), d, d**2, e, d * e, e**2), 1) * converted.unsqueeze(1)
    payment = torch.stack((paid - q, q * (1 - q)), 1).nan_to_num(0.0)
    return torch.cat((size, payment), 1)


def payment_shift(effect: Tensor, q: Tensor) -> Tensor:
    """What ``effect`` b adds to the logit of probabilities ``q``: they become ``q + q (1 − q) b`` within bounds."""
    paid, unpaid = 1 + (1 - q) * effect, 1 - q * effect
    return paid.clamp_min(FLOOR).log() - unpaid.clamp_min(FLOOR).log()


def fit_effects(sums: Tensor, effects: Tensor) -> dict[str, float]:
    """Write the posterior means of a, s and b into ``effects [R, 3]``, from the users' ``sums [R, 8]``.

    Returns:
        Standard deviations ``level`` and ``slope`` of the effects on size and ``noise`` of the rest, and ``payment``
        of that on payment; nothing, and nothing is written, of what there are too few conversions for.
    """
    return _fit_size(sums[:, :SIZE], effects[:, :2]) | _fit_payment(sums[:, SIZE:], effects[:, 2])


def _fit_payment(sums: Tensor, effects: Tensor) -> dict[str, float]:
    if not sum(float(part[:, 1].sum(dtype=torch.float64)) for part in sums.split(CHUNK)) > LEAST:
        return {}
    users = (sums[:, 1] > 0).nonzero().squeeze(1)
    score, information = sums[users[:: -(-len(users) // SAMPLE)]].double().unbind(1)

    def likelihood(variance: float) -> float:
        return float((variance * score**2 / (1 + variance * information) - torch.log1p(variance * information)).sum())

    variance = max(RATIOS, key=likelihood)
    for part, written in zip(sums.split(CHUNK), effects.split(CHUNK), strict=True):
        written.copy_(variance * part[:, 0] / (1 + variance * part[:, 1]))
    return {"payment": variance**0.5}


def _fit_size(sums: Tensor, effects: Tensor) -> dict[str, float]:
    whole = torch.stack([part.sum(0, dtype=torch.float64) for part in sums.split(CHUNK)]).sum(0)
    if not whole[0] > LEAST:
        return {}
    centre = whole[3] / whole[0]
    users = (sums[:, 0] > 0).nonzero().squeeze(1)
    some = _centred(sums[users[:: -(-len(users) // SAMPLE)]], centre)
    fitted = [(_likelihood(some, *ratios), ratios) for ratios in product(RATIOS, repeat=2)]
    (_, noise), (level, slope) = max(fitted)
    for part, written in zip(sums.split(CHUNK), effects.split(CHUNK), strict=True):
        written.copy_(_posterior(_centred(part, centre), level, slope)[0])
    return {"level": (level * noise) ** 0.5, "slope": (slope * noise) ** 0.5, "noise": noise**0.5}


def _centred(sums: Tensor, centre: Tensor) -> Tensor:
    """Sums in float64 of excesses less their overall mean, which the learner fits to means, not to logarithms."""
    n, d, dd, e, de, ee = sums.double().unbind(1)
    return torch.stack((n, d, dd, e - centre * n, de - centre * d, ee - 2 * centre * e + centre**2 * n), 1)


def _posterior(sums: Tensor, level: float, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior means ``[U, 2]``, determinant of ``I + K A`` and ``bᵀ (A + K⁻¹)⁻¹ b``, with K = diag(κ_a, κ_s)."""
    n, d, dd, e, de, _ = sums.unbind(1)
    a, s = level**0.5, slope**0.5
    p, q, r = 1 + level * n, a * s * d, 1 + slope * dd
    determinant = p * r - q * q
    u, v = a * e, s * de
    x, y = (r * u - q * v) / determinant, (p * v - q * u) / determinant
    return torch.stack((a * x, s * y), 1), determinant, u * x + v * y


def _likelihood(sums: Tensor, level: float, slope: float) -> tuple[float, float]:
    """Logarithm of the marginal likelihood at its best noise variance, up to a constant, and that variance."""
    _, determinant, explained = _posterior(sums, level, slope)
    n = float(sums[:, 0].sum())
    noise = max(float((sums[:, 5].sum() - explained.sum()) / n), 1e-12)
    return -n / 2 * math.log(noise) - float(determinant.log().sum()) / 2, noise
