"""Scale on paper: TorchRec's planner asked about machines and tables that are only described.

Nothing is allocated and no device is needed. All figures are estimates; where TorchRec's differ from what its kernels
do, :mod:`~lightning_budget.training.capacity.storage` says how and mends them.
"""

from lightning_budget.training.capacity.description import Job as Job
from lightning_budget.training.capacity.description import Machine as Machine
from lightning_budget.training.capacity.description import Table as Table
from lightning_budget.training.capacity.planner import Plan as Plan
from lightning_budget.training.capacity.planner import plan as plan
from lightning_budget.training.capacity.planner import row_wise_bytes as row_wise_bytes
from lightning_budget.training.capacity.traffic import Flow as Flow
from lightning_budget.training.capacity.traffic import Traffic as Traffic
