"""Sanity checks of a randomized trial, made before anything is estimated from it.

:func:`screen_rows` counts rows that cannot be used, on raw columns; :func:`check_trial` asks of a table whether arms
were given as often as the propensities say, whether features agree between arms, how far weights are from equal, and
whether a feature tells the arm or repeats an outcome.

Sample weights say how much a row counts in an estimate, not how its arm was drawn: tests of the draw count each row
once, which keeps their distribution under the hypothesis. Effective rows, which tell of estimates, take weights in.
"""

from lightning_budget.trial.balance import Balance, check_balance
from lightning_budget.trial.check import TrialChecks, check_trial, logged_of
from lightning_budget.trial.leakage import Leakage, check_leakage
from lightning_budget.trial.logged import IdFeature, Logged, logged_trial
from lightning_budget.trial.propensity import Propensity, check_propensity
from lightning_budget.trial.render import as_text, print_checks, render
from lightning_budget.trial.rows import KINDS, Kind, Rows, screen_rows
from lightning_budget.trial.sample_ratio import SampleRatio, check_sample_ratio
from lightning_budget.trial.verdict import Verdict

__all__ = [
    "KINDS",
    "Balance",
    "IdFeature",
    "Kind",
    "Leakage",
    "Logged",
    "Propensity",
    "Rows",
    "SampleRatio",
    "TrialChecks",
    "Verdict",
    "as_text",
    "check_balance",
    "check_leakage",
    "check_propensity",
    "check_sample_ratio",
    "check_trial",
    "logged_of",
    "logged_trial",
    "print_checks",
    "render",
    "screen_rows",
]
