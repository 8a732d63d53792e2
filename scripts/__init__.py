"""The command lines, installed as the package ``lightning_budget_scripts``."""
