"""Which folders become packages; everything else about the project is in pyproject.toml.

``configs/`` and ``scripts/`` keep their short names in a checkout and get unmistakable ones when installed.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["lightning_budget", "lightning_budget.*", "datamodules", "datamodules.*"]),
        "lightning_budget_configs",
        "lightning_budget_scripts",
    ],
    package_dir={"lightning_budget_configs": "configs", "lightning_budget_scripts": "scripts"},
    package_data={"lightning_budget_configs": ["**/*.yaml"]},
    include_package_data=False,
)
