"""A plan for people: three tables in a terminal, and one line of a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable
from torchrec.distributed.planner.types import Storage

from lightning_budget.training.capacity.description import count, size
from lightning_budget.training.capacity.planner import Plan, TablePlan

ROWS = {
    "weights": "table rows",
    "state": "optimizer state",
    "cache": "cache of host rows",
    "buffers": "step buffers",
    "dense": "dense weights, 6 copies",
    "history": "history of users",
    "inputs": "ids in flight, 20 copies",
    "margin": "planner's margin",
    "total": "total",
}


def tables_table(plan: Plan) -> RichTable:
    """A line per table: where it lies and what its fullest rank holds of it."""
    out = _empty("table", "rows", "dim", "sharding", "kernel", "ranks", "weights/rank", "state/rank", "planner ms/step")
    for each in plan.tables:
        held = [s for s in each.shards if s.rows]
        out.add_row(
            escape(each.table.name),
            f"{each.table.rows:,}",
            str(each.table.dim),
            each.sharding,
            each.kernel,
            _ranks([s.rank for s in held]),
            size(max(_both(s.weights) for s in held)),
            size(max(_both(s.state) for s in held)),
            _milliseconds(sum(each.milliseconds.values())),
        )
    return out


def memory_table(plan: Plan) -> RichTable:
    """Bytes of the fullest rank beside what it has."""
    out = _empty("fullest rank", "HBM", "host memory")
    memory, on_gpu = plan.memory(), plan.machine.device == "cuda"
    for part, text in ROWS.items():
        storage = memory[part]
        if part == "total":
            out.add_section()
        out.add_row(text, size(storage.hbm) if on_gpu else "–", size(storage.ddr))
    total = memory["total"]
    out.add_row("there is", size(plan.machine.hbm) if on_gpu else "–", size(plan.machine.ddr_per_rank))
    hbm = f"{total.hbm / plan.machine.hbm:.1%}" if on_gpu else "–"
    out.add_row("share used", hbm, f"{total.ddr / plan.machine.ddr_per_rank:.1%}")
    return out


def traffic_table(plan: Plan) -> RichTable:
    """Bytes of the busiest rank in a step, and their time at the machine's bandwidths."""
    out = _empty("per step, busiest rank", "bytes", "ms", "over")
    seconds, machine = plan.seconds(), plan.machine
    link = f"{size(machine.link)}/s {'within' if machine.link == machine.intra else 'between'} nodes"
    if machine.ranks == machine.local_ranks:
        link = f"{size(machine.intra)}/s within the node"
    for name, flow in plan.traffic.flows.items():
        out.add_row(name, size(flow.busiest), _milliseconds(1e3 * seconds[name]), link)
    if max(plan.traffic.host):
        name = "host rows, none cached"
        amount = size(max(plan.traffic.host))
        out.add_row(
            name, f"{amount} each way", _milliseconds(1e3 * seconds[name]), f"{size(machine.host)}/s to the host"
        )
    return out


SWEEP_HEADER = (
    "users",
    "dim",
    "ranks",
    "plan of the user table",
    "HBM a rank",
    "of it",
    "host a rank",
    "exchanged a step",
    "ms",
    "host rows a step",
    "ms",
)


def sweep_row(plan: Plan) -> list[str]:
    """Cells of one plan under :data:`SWEEP_HEADER`."""
    first: TablePlan = plan.tables[0]
    memory, machine, seconds = plan.memory()["total"], plan.machine, plan.seconds()
    host, host_seconds = max(plan.traffic.host), seconds.pop("host rows, none cached")
    on_gpu = machine.device == "cuda"
    return [
        count(first.table.rows),
        str(first.table.dim),
        str(machine.ranks),
        f"{first.sharding}, {first.kernel}",
        size(memory.hbm) if on_gpu else "–",
        f"{memory.hbm / machine.hbm:.0%}" if on_gpu else "–",
        size(memory.ddr) if memory.ddr else "–",
        size(sum(flow.busiest for flow in plan.traffic.flows.values())),
        _milliseconds(1e3 * sum(seconds.values())),
        size(host) if host else "–",
        _milliseconds(1e3 * host_seconds) if host else "–",
    ]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; short rows are filled up."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join([*line, *[""] * (len(header) - len(line))]) + " |" for line in lines)


def _empty(*columns: str) -> RichTable:
    table = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _both(storage: Storage) -> int:
    return storage.hbm + storage.ddr


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"{min(ranks)}–{max(ranks)}" if max(ranks) - min(ranks) == len(ranks) - 1 else f"{len(ranks)} ranks"


def _milliseconds(amount: float) -> str:
    return f"{amount:.3g}"
