"""A trained model as plain PyTorch: modules and programs that score users with nothing but torch."""

from lightning_budget.serving.files import load, save
from lightning_budget.serving.model import Served, ServingModel
from lightning_budget.serving.policy import price_treatment
from lightning_budget.serving.policy_file import load_policy, save_policy
from lightning_budget.serving.program import export_program, load_program, save_program
from lightning_budget.serving.tables import FloatTable, Int8Table

__all__ = [
    "FloatTable",
    "Int8Table",
    "Served",
    "ServingModel",
    "export_program",
    "load",
    "load_policy",
    "load_program",
    "price_treatment",
    "save",
    "save_policy",
    "save_program",
]
