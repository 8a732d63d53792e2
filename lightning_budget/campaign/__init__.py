"""The embedded campaign: a randomized coupon trial with repeat users and known potential outcomes.

Every partition of rows is a function of ``(seed, split, partition)`` and every user trait of ``(seed, user)``, so any
part of a campaign of any size is generated alone, in constant memory, with the same result.

For the exposure i of user u on day d, to a coupon of face value a_j (a_0 = 0: control)::

    dose         h_ij = a_j / (a_j + κ_u)                                  saturating, half effect at face value κ_u
    purchase     P_ij = (1 − π_u) σ(b + base_i + s_i h_ij)                 b = purchase_logit
    spend | buy       ~ LogNormal(m_i + g_i h_ij, σ_spend) · W             value = spend (0 without purchase)
    redeem | buy      ~ Bernoulli(ρ_ij)                                    cost  = a_j on redemption
    oracle       v_ij = P_ij exp(m_i + g_i h_ij + σ_spend² / 2),  c_ij = a_j P_ij ρ_ij

How much there is to learn from a row hangs on b and σ_spend (``spend_sigma``): the rarer a purchase and the wider the
spend, the noisier the outcomes. By default about 35 % of exposures end in a purchase, 27 % under control.

Options, off by default:

``zero_inflation``
    π_u ~ Beta(z / (1 − z), 1), mean z: users some of whose exposures cannot end in a purchase. Else π = 0.
``spend_tail``
    W is Pareto with tail index α and mean 1, so that the oracle stays: P(W > w) = ((α − 1) / (α w))^α. Else W = 1.
``drift_base``, ``drift_sensitivity``, ``weekly_base``, ``weekly_sensitivity``
    b and log s_i change linearly from the first day to the last, and over the week: later splits see another world.
``repeat``
    Zipf exponent of activity over users. With the default of 1 the busiest 1 % make a quarter of the rows.
``propensity``
    ``tiers``: the loyal get control more often; ``targeted``: by the features of the row. Else uniform.

A folder of partitions larger than memory: :mod:`lightning_budget.campaign.writing`.
"""

from lightning_budget.campaign.campaign import SPLITS, Campaign, Exposures

__all__ = ["SPLITS", "Campaign", "Exposures"]
