"""A profiled step divided into its parts: traces divided by hand, random ones by instants, and real ones."""

from __future__ import annotations

import random

import pytest
import torch
from torch.autograd.profiler import profile, record_function

from lightning_budget.training.step_split import (
    _COLLECTIVE,
    _COMPUTE,
    _HOST,
    BACKWARD_NODE,
    PARTS,
    RANGE,
    STEP,
    Event,
    _Layer,
    _paint,
    read_events,
    step_shares,
)

WHOLE = Event(STEP, 0, 1000, operator=False)
NOBODY = dict.fromkeys(PARTS, 0.0)


def in_range(part: str, start: int, end: int) -> Event:
    return Event(RANGE + part, start, end, operator=False)


def node(name: str, start: int, end: int, sequence: int, thread: int = 0) -> Event:
    return Event(BACKWARD_NODE + name, start, end, thread=thread, sequence=sequence)


def collective(start: int, end: int) -> Event:
    return Event("gloo:all_to_all", start, end, thread=9, operator=False, asynchronous=True)


def test_ranges_and_fbgemm_and_the_rest() -> None:
    events = [
        WHOLE,
        in_range("embedding", 100, 300),
        Event("aten::cat", 120, 280),
        in_range("goal", 400, 450),
        Event("aten::mul", 410, 420),
        Event("fbgemm::split_embedding_backward", 600, 900),
        Event("aten::empty", 700, 750),
    ]
    assert step_shares(events) == pytest.approx({**NOBODY, "embedding": 0.5, "goal": 0.05, "dense": 0.45})


def test_only_communication_that_nothing_hides_counts() -> None:
    # Under way 200 … 700 in all; an operator runs meanwhile 300 … 400 and embedding's 600 … 650.
    events = [
        WHOLE,
        Event("aten::mm", 300, 400),
        in_range("embedding", 500, 800),
        Event("aten::cat", 600, 650),
        collective(200, 600),
        collective(550, 700),
        Event("c10d::alltoall_base_", 820, 830),
    ]
    shares = step_shares(events)
    assert shares == pytest.approx({"communication": 0.36, "embedding": 0.15, "dense": 0.49, "goal": 0.0})


def test_backward_goes_where_its_forward_was() -> None:
    events = [
        WHOLE,
        # Makes no node, so it bears the number of the next: the goal's.
        Event("aten::eq", 0, 10, sequence=5),
        in_range("goal", 10, 100),
        Event("aten::mul", 20, 60, sequence=5),
        # Called by aten::mul after it made its node.
        Event("aten::empty", 30, 40, sequence=6),
        Event("aten::mm", 100, 150, sequence=6),
        in_range("embedding", 150, 200),
        Event("fbgemm::lookup", 160, 190, sequence=7),
        node("Lookup", 200, 300, 7),
        node("MmBackward0", 300, 600, 6),
        Event("MmBackward0", 300, 590, sequence=6, operator=False),
        Event("aten::mm", 310, 580),
        node("MulBackward0", 600, 700, 5),
        node("torch::autograd::AccumulateGrad", 700, 750, -1),
    ]
    assert step_shares(events) == pytest.approx({**NOBODY, "goal": 0.19, "embedding": 0.15, "dense": 0.66})


def test_on_a_gpu_the_device_is_divided_and_its_idle_time_is_the_hosts() -> None:
    events = [
        WHOLE,
        in_range("embedding", 0, 200),
        Event("fbgemm::lookup", 10, 60, correlation=1, sequence=3),
        Event("aten::mm", 200, 250, correlation=2, sequence=4),
        # Another thread runs backward while this one waits for it.
        node("Lookup", 300, 400, 3, thread=2),
        Event("aten::index_put_", 310, 390, thread=2, correlation=3),
        Event("lookup_kernel", 100, 400, device=True, correlation=1),
        Event("gemm_kernel", 400, 500, device=True, correlation=2),
        Event("ncclDevKernel_SendRecv", 350, 600, device=True, correlation=2),
        Event("index_put_kernel", 700, 900, device=True, correlation=3),
        Event("Memcpy", 900, 950, device=True),
        # What the host records of a collective says nothing of the device.
        Event("nccl:all_to_all", 0, 1000, thread=9, operator=False, asynchronous=True),
    ]
    expected = {"embedding": 0.1 + 0.3 + 0.2, "dense": 0.1 + 0.1 + 0.05 + 0.05, "communication": 0.1, "goal": 0.0}
    assert step_shares(events) == pytest.approx(expected)


def test_a_trace_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no range"):
        step_shares([Event("aten::mm", 0, 10)])


@pytest.mark.parametrize("seed", range(20))
def test_the_highest_layer_shows_at_every_instant(seed: int) -> None:
    r = random.Random(seed)
    layers = [_Layer(0, 300, _HOST, "dense")]
    for level, part in ((_HOST, "embedding"), (_COLLECTIVE, "communication"), (_COMPUTE, "goal")):
        for _ in range(r.randrange(6)):
            start = r.randrange(-20, 310)
            layers.append(_Layer(start, start + r.randrange(60), level, part))
    expected = dict.fromkeys(PARTS, 0)
    for instant in range(300):
        shown = max((x for x in layers if x.start <= instant < x.end), key=lambda x: (x.level, x.part != "dense"))
        expected[shown.part] += 1
    assert _paint(layers, 0, 300) == expected


def shares_of(goal_products: int, dense_products: int) -> dict[str, float]:
    """Of a real step whose goal and dense part are so many matrix products."""
    torch.manual_seed(0)
    x = torch.randn(160, 160, requires_grad=True)

    def products(y: torch.Tensor, count: int) -> torch.Tensor:
        for _ in range(count):
            y = torch.tanh(y @ x)
        return y

    def step() -> None:
        dense = products(x, dense_products)
        with record_function(RANGE + "goal"):
            goal = products(dense.detach() + x, goal_products).mean()
        (dense.mean() + goal).backward()

    step()
    with profile(use_kineto=True) as profiled, record_function(STEP):
        step()
    return step_shares(read_events(profiled.kineto_results))


def test_a_real_step_backward_included(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINETO_LOG_LEVEL", "6")
    few, many = shares_of(10, 40), shares_of(40, 10)
    for shares in (few, many):
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["embedding"] == shares["communication"] == 0
    # Two thirds of the work is backward: without it the goal's share of 0.8 would be below a third.
    assert few["goal"] < 0.4
    assert many["goal"] > 0.6
