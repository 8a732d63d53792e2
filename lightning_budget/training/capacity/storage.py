"""Bytes of optimizer state, where FBGEMM's kernels put them."""

from __future__ import annotations

from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.types import ParameterConstraints, ShardingOption, Storage

STATE = {
    "rowwise_adagrad": (0, 1),
    "adagrad": (1, 0),
    "sgd": (0, 0),
    "adam": (2, 0),
    "partial_rowwise_adam": (1, 1),
}
"""Numbers of state that an optimizer keeps, by name: per weight, per row."""

STATE_BYTES = 4
"""FBGEMM keeps state in fp32, whatever the precision of the table."""

HOST_KERNELS = ("fused_uvm", "fused_uvm_caching")


def state_bytes(optimizer: str, rows: int, columns: int, kernel: str, device: str) -> Storage:
    """State of a shard of ``rows`` × ``columns`` weights.

    With ``fused`` it lies beside the weights. Of rows in host memory, state per weight lies there too and is not
    cached, but state per row stays on the device (``fbgemm_gpu``'s ``construct_split_state``).
    """
    per_weight, per_row = STATE[optimizer]
    element, row = STATE_BYTES * per_weight * rows * columns, STATE_BYTES * per_row * rows
    if device == "cpu":
        return Storage(hbm=0, ddr=element + row)
    if kernel in HOST_KERNELS:
        return Storage(hbm=row, ddr=element)
    return Storage(hbm=element + row, ddr=0)


class FusedStorageEstimator(EmbeddingStorageEstimator):
    """TorchRec's storage estimator with the state that FBGEMM's kernels really keep.

    For tables of an ``untagged`` module TorchRec counts weights, cache and buffers, and this adds
    :func:`state_bytes`. On fp32 tables in device memory the sum is TorchRec's own for tagged tables; elsewhere its own
    would take state to be as narrow as fp16 weights, and put state per row of host tables on the host.
    """

    def __init__(self, topology: Topology, constraints: dict[str, ParameterConstraints], optimizer: str) -> None:
        super().__init__(topology=topology, constraints=constraints)
        self.optimizer, self.device = optimizer, topology.compute_device

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: dict) -> None:  # type: ignore[override]
        super().estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            for shard in option.shards:
                rows, columns = shard.size
                state = state_bytes(self.optimizer, rows, columns, option.compute_kernel, self.device)
                assert shard.storage is not None
                shard.storage += state
