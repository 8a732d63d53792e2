"""Classical learners as references beside the networks; EconML and CausalML do the work (extra ``classical``)."""

from lightning_budget.classical.boosted import boosted_r_learner
from lightning_budget.classical.effects import EffectModel
from lightning_budget.classical.forest import causal_forest

__all__ = ["EffectModel", "boosted_r_learner", "causal_forest"]
