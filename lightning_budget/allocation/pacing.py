"""A policy that follows what it spends: λ is solved anew for what is left of the budget and of the day."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.price_policy import best_treatment, check_user, treatments_of
from lightning_budget.allocation.sketch import SketchCurve, SlopeSketch
from lightning_budget.errors import InputError

SHRINKAGE = 0.01
"""Share of the budget, and of the expected traffic, that must have passed until half of a ratio is what was seen."""

MEMORY = 0.1
"""Share of the budget, and of the day, after which what was seen counts for 1/e: a drift is followed, noise is not."""

LARGEST_RATIO = 20.0
"""No ratio of seen to expected is believed beyond this, or below its inverse."""


@dataclass(frozen=True)
class ArrivalCurve:
    """Which share of the traffic has come by when, linear between the points.

    Attributes:
        times: M ≥ 2 ascending timestamps, in any unit; shares: M, ascending from 0 to 1.
    """

    times: tuple[float, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        t, s = self.times, self.shares
        good = len(t) == len(s) >= 2 and all(map(math.isfinite, (*t, *s))) and s[0] == 0 and s[-1] == 1
        if not (good and all(a < b for a, b in pairwise(t)) and all(a <= b for a, b in pairwise(s))):
            raise InputError(
                f"arrival curve with times {list(t)[:4]}… and shares {list(s)[:4]}…",
                "as many shares as times, at least 2, both ascending, shares from 0 to 1",
                "give cumulative shares of the traffic, such as times=(0, 24), shares=(0, 1)",
            )

    def share(self, time: float) -> float:
        """Share of the traffic before ``time``; 0 before the first point and 1 after the last."""
        i = min(max(bisect_right(self.times, time), 1), len(self.times) - 1)
        t0, t1, s0, s1 = self.times[i - 1], self.times[i], self.shares[i - 1], self.shares[i]
        return s0 + (s1 - s0) * min(max((time - t0) / (t1 - t0), 0.0), 1.0)


@dataclass
class PaceState:
    """All that a pace remembers; plain numbers.

    Attributes:
        multiplier: λ in force; foreseen: spend per user that the sketch has for it.
        users: decided so far; reported_users: of them, those at the last report.
        spend, share: currency, and share of the traffic, at the last report.
        pending: predicted cost of the decisions since then; expected: what the sketch foresaw for them.
        bias: spend per predicted cost, shrunk towards 1, as of the last report.
        started: whether a decision or a report has fixed the start; start: share of the traffic before it.
        seen_spend, predicted_spend, foreseen_spend: decaying sums of spend, of predicted cost, and of what the sketch
            foresaw; seen_users, foreseen_users: likewise of traffic.
    """

    multiplier: float = 0.0
    foreseen: float = 0.0
    users: int = 0
    reported_users: int = 0
    spend: float = 0.0
    share: float = 0.0
    pending: float = 0.0
    expected: float = 0.0
    bias: float = 1.0
    started: bool = False
    start: float = 0.0
    seen_spend: float = 0.0
    predicted_spend: float = 0.0
    foreseen_spend: float = 0.0
    seen_users: float = 0.0
    foreseen_users: float = 0.0


class PacedPolicy:
    r"""Choose like :class:`PricePolicy`, at a multiplier that every report of spend and traffic corrects.

    .. math:: \lambda \leftarrow \lambda_\text{sketch}\!\left(\frac{B - S}{\rho_c\, \rho_n N (1 - x)}\right)

    with spend :math:`S` at share :math:`x` of the traffic. :math:`\rho_c` is spend over what the sketch foresaw for the
    multipliers used, so it covers costs that come out otherwise than predicted as well as users unlike the sketched
    ones; :math:`\rho_n` is traffic over what the horizon foresaw. Both are shrunk towards 1, and forget.

    No decision is made whose predicted cost, times a running ratio of real to predicted ones, the rest of the budget
    does not cover, but for the cheapest treatment. With
    spend reported after each decision, the budget is thus overspent by no more than what one decision costs, whatever
    it costs; between reports, by what costs exceed their predictions.

    Args:
        sketch: of users as they are expected; budget: total currency for the whole day.
        horizon: users expected in the whole day.
        arrivals: where reports give times instead of shares.

    Raises:
        InputError: if budget or horizon is not a number above 0, or the budget does not cover the cheapest treatments.
    """

    def __init__(
        self, sketch: SlopeSketch, budget: float, horizon: float, arrivals: ArrivalCurve | None = None
    ) -> None:
        for name, x in (("budget", budget), ("horizon", horizon)):
            if not (math.isfinite(x) and x > 0):
                raise InputError(f"{name}={x}", "a finite number above 0", f"give the {name} of the whole day")
        self.sketch, self.budget, self.horizon, self.arrivals = sketch, float(budget), float(horizon), arrivals
        self.curve: SketchCurve = sketch.curve()
        self.treatments = sketch.treatments
        self.state = PaceState()
        start = self.curve.at_budget(self.budget / self.horizon)
        self.state.multiplier, self.state.foreseen = start.multiplier, start.spend

    @property
    def multiplier(self) -> float:
        """λ in force, value per currency."""
        return self.state.multiplier

    @property
    def left(self) -> float:
        """Budget less reported spend and the expected cost of what was decided since."""
        return self.budget - self.state.spend - self.state.bias * self.state.pending

    @property
    def spend_ratio(self) -> float:
        """Spend per spend foreseen, shrunk towards 1."""
        s, prior = self.state, SHRINKAGE * self.budget
        return _ratio(s.seen_spend, s.foreseen_spend, prior)

    @property
    def traffic_ratio(self) -> float:
        """Users per user foreseen, shrunk towards 1."""
        s, prior = self.state, SHRINKAGE * self.horizon
        return _ratio(s.seen_users, s.foreseen_users, prior)

    def choose(self, values: Sequence[float], costs: Sequence[float]) -> int:
        """The treatment of the next user, K values and costs.

        Raises:
            InputError: if there are not K values and costs, or one is not finite.
        """
        check_user(values, costs, self.treatments)
        state = self.state
        left = (self.budget - state.spend) / state.bias - state.pending
        arm = best_treatment(values, costs, state.multiplier)
        if costs[arm] > left or left <= 0:
            arm = self._affordable(values, costs, left)
        state.started = True
        state.users += 1
        state.pending += costs[arm]
        state.expected += state.foreseen
        return arm

    @torch.no_grad()
    def __call__(self, value: Tensor, cost: Tensor) -> Tensor:
        """Treatments ``[N]`` int64 of the next N users, in their order, as :meth:`choose` gives them one by one.

        Raises:
            InputError: if value and cost are not finite ``[N, K]`` tensors of K treatments.
        """
        state = self.state
        left = self.left / state.bias
        arm = treatments_of(value, cost, state.multiplier if left > 0 else LARGEST, self.treatments)
        if not len(arm):
            return arm
        spent = cost.gather(1, arm[:, None])[:, 0].double().cumsum(0)
        # Not the last running sum alone: where arms pay money back, another one may reach what is left, or go below 0.
        if float(spent.max()) >= left > 0 or (left <= 0 and float(spent.min()) < 0):
            rows = zip(value.tolist(), cost.tolist(), strict=True)
            return torch.tensor([self.choose(v, c) for v, c in rows], device=value.device)
        state.started = True
        state.users += len(value)
        state.pending += float(spent[-1])
        state.expected += state.foreseen * len(value)
        return arm

    def report(self, spend: float, share: float | None = None, *, time: float | None = None) -> float:
        """Tell the total spend of all decisions so far, and how much of the day has passed; solve λ anew.

        Of a day that is under way before the first decision, the first report tells the spend and the share so far.

        Args:
            spend: currency, cumulative.
            share: of the day's traffic, cumulative, in [0, 1].
            time: instead of it, to be read on the arrival curve. Without either, users are counted against the
                horizon, which then has to be right.

        Returns:
            The multiplier now in force.

        Raises:
            InputError: if a number is NaN, or spend or share goes backwards.
        """
        state = self.state
        share = self._share(share, time)
        for name, now, before in (("spend", spend, state.spend), ("share", share, state.share)):
            if not (math.isfinite(now) and now >= before):
                raise InputError(
                    f"{name}={now} after {before}", "a finite number that does not fall", f"report cumulative {name}"
                )
        if state.started:
            self._learn(spend - state.spend, share - state.share, state.users - state.reported_users)
        else:
            state.start = share
        state.started, state.spend, state.share = True, float(spend), share
        state.reported_users, state.pending, state.expected = state.users, 0.0, 0.0
        self._solve()
        return state.multiplier

    def to_dict(self) -> dict[str, Any]:
        """Everything, in plain containers: inputs, sketch and state."""
        return {
            "budget": self.budget,
            "horizon": self.horizon,
            "arrivals": None if self.arrivals is None else [list(self.arrivals.times), list(self.arrivals.shares)],
            "sketch": self.sketch.to_dict(),
            "state": asdict(self.state),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> PacedPolicy:
        """Inverse of :meth:`to_dict`: goes on as if it had never stopped."""
        arrivals = state["arrivals"]
        curve = None if arrivals is None else ArrivalCurve(tuple(arrivals[0]), tuple(arrivals[1]))
        out = cls(SlopeSketch.from_dict(state["sketch"]), state["budget"], state["horizon"], curve)
        out.state = PaceState(**state["state"])
        return out

    def describe(self) -> str:
        """A few lines of text: the plan, and where it stands."""
        s = self.state
        return "\n  ".join(
            [
                f"Paced policy: {self.budget:,.6g} in total for {self.horizon:,.0f} users, "
                f"multiplier {s.multiplier:.6g}",
                f"sketch: {self.sketch.users:,} users, {self.treatments} treatments",
                f"so far: {s.users:,} users decided, {s.spend:,.6g} spent, {s.share:.1%} of the traffic",
                f"against what was foreseen: spend × {self.spend_ratio:.4g}, traffic × {self.traffic_ratio:.4g}",
            ]
        )

    def __str__(self) -> str:
        return self.describe()

    def _affordable(self, values: Sequence[float], costs: Sequence[float], left: float) -> int:
        """The best treatment among the cheapest one and, while money is left, those it covers."""
        least = min(costs)
        most = max(left, least) if left > 0 else least
        fits = [j for j, c in enumerate(costs) if c <= most]
        return fits[best_treatment([values[j] for j in fits], [costs[j] for j in fits], self.state.multiplier)]

    def _share(self, share: float | None, time: float | None) -> float:
        if time is not None and (share is not None or self.arrivals is None):
            raise InputError(
                f"share={share}, time={time}", "a share, or a time and an arrival curve", "give one of both"
            )
        if share is not None:
            # A NaN is neither, and is told apart from a share that falls.
            if not 0 <= share <= 1:
                raise InputError(f"share={share}", "from 0 to 1", "report the share of the day's traffic that passed")
            return float(share)
        if time is not None and self.arrivals is not None:
            if math.isnan(time):
                raise InputError("time=nan", "a timestamp", "give it in the unit of the arrival curve")
            return self.arrivals.share(time)
        return min(self.state.start + self.state.users / self.horizon, 1.0)

    def _learn(self, spent: float, passed: float, users: int) -> None:
        """Take what came since the last report into the ratios."""
        state = self.state
        kept = math.exp(-max(spent, state.expected, 0.0) / (MEMORY * self.budget))
        state.seen_spend = kept * state.seen_spend + spent
        state.predicted_spend = kept * state.predicted_spend + state.pending
        state.foreseen_spend = kept * state.foreseen_spend + state.expected
        kept = math.exp(-passed / MEMORY)
        state.seen_users = kept * state.seen_users + users
        state.foreseen_users = kept * state.foreseen_users + passed * self.horizon

    def _solve(self) -> None:
        state = self.state
        state.bias = _ratio(state.seen_spend, state.predicted_spend, SHRINKAGE * self.budget)
        users = max(self.traffic_ratio * self.horizon * (1 - state.share), 1.0)
        per_user = (self.budget - state.spend) / users / self.spend_ratio
        if per_user < self.curve.spend[0]:
            state.multiplier, state.foreseen = LARGEST, self.curve.spend[0]
        else:
            found = self.curve.at_budget(per_user)
            state.multiplier, state.foreseen = found.multiplier, found.spend


def _ratio(seen: float, foreseen: float, prior: float) -> float:
    if foreseen + prior <= 0 or seen + prior <= 0:
        return 1.0
    return min(max((seen + prior) / (foreseen + prior), 1 / LARGEST_RATIO), LARGEST_RATIO)
