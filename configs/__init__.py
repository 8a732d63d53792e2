"""The Hydra configs, installed as the package ``lightning_budget_configs``."""
