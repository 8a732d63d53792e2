"""Where the time of one training step went, from a profile of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch._C._autograd import DeviceType

PARTS = ("embedding", "dense", "goal", "communication")
"""Every instant of a step belongs to one."""
STEP, RANGE = "throughput: step", "throughput: "
"""Names of the ranges to record: the whole step, and ``RANGE + part`` around what belongs to a part."""
COMMUNICATION = ("c10d::", "gloo:", "nccl:", "nccl")
BACKWARD_NODE = "autograd::engine::evaluate_function: "

# What the instant belongs to, lowest first: the host between operators; a collective under way; an operator running
# (on a GPU: a kernel running). Communication that computing hides is not counted.
_HOST, _COLLECTIVE, _COMPUTE = 0, 1, 2
_BASE = (_HOST, "dense")


class Event(NamedTuple):
    """One profiled interval.

    Attributes:
        name: of the operator, range, autograd node or kernel.
        start, end: nanoseconds.
        thread: that ran it; forward_thread: that ran the forward of a backward node.
        sequence: joins a forward operator and its backward node; −1: none.
        operator: an operator, as opposed to a range or a node.
        asynchronous: runs beside its thread's other events: a collective under way.
        device: runs on a GPU.
        correlation: of an operator; on the device: of the operator that launched it.
    """

    name: str
    start: int
    end: int
    thread: int = 0
    forward_thread: int = 0
    sequence: int = -1
    operator: bool = True
    asynchronous: bool = False
    device: bool = False
    correlation: int = 0


class _Layer(NamedTuple):
    start: int
    end: int
    level: int
    part: str


def read_events(kineto_results: Any) -> list[Event]:
    """The events of a finished ``torch.autograd.profiler.profile``, a hundred times faster than its ``events()``."""
    events: list[Event] = []
    for e in kineto_results.events():
        device = e.device_type() != DeviceType.CPU
        if device and e.activity_type() not in ("kernel", "concurrent_kernel", "gpu_memcpy", "gpu_memset"):
            continue
        events.append(
            Event(
                name=e.name(),
                start=e.start_ns(),
                end=e.start_ns() + e.duration_ns(),
                thread=e.start_thread_id(),
                forward_thread=e.fwd_thread_id(),
                sequence=e.sequence_nr(),
                operator=e.scope() == 0,
                asynchronous=e.is_async(),
                device=device,
                correlation=e.linked_correlation_id() if device else e.correlation_id(),
            )
        )
    return events


def step_shares(events: Iterable[Event]) -> dict[str, float]:
    """Share of the step's time that each of :data:`PARTS` took; they sum to 1.

    - communication: a collective under way while this rank computes nothing;
    - goal, embedding: inside their ranges, and the autograd nodes of operators inside them; FBGEMM's operators
      anywhere;
    - dense: everything else.

    On a GPU it is the device's time that is divided, and where it idles the host's.

    Args:
        events: of one step, with a range :data:`STEP` around it.

    Raises:
        ValueError: if there is no such range.
    """
    events = list(events)
    step = next((e for e in events if e.name == STEP and not e.device), None)
    if step is None:
        raise ValueError(f"no range {STEP!r} among {len(events)} events")
    layers = [_Layer(step.start, step.end, *_BASE)]
    parts: dict[int, str] = {}
    on_gpu = any(e.device for e in events)
    for event, part, segments in _host_events(events, step.thread):
        if not event.asynchronous:
            parts[event.correlation] = part
        computing = event.operator and part != "communication" and not on_gpu
        layers += [_Layer(a, b, _COMPUTE if computing else _HOST, part) for a, b in segments]
    for e in events:
        if e.device:
            part = _named(e) or (parts.get(e.correlation) if e.correlation else None) or "dense"
            layers.append(_Layer(e.start, e.end, _COLLECTIVE if part == "communication" else _COMPUTE, part))
        elif e.asynchronous and not on_gpu and _named(e) == "communication":
            layers.append(_Layer(e.start, e.end, _COLLECTIVE, "communication"))
    times = _paint(layers, step.start, step.end)
    return {part: times[part] / max(1, step.end - step.start) for part in PARTS}


def _host_events(events: list[Event], main: int) -> Iterator[tuple[Event, str, list[tuple[int, int]]]]:
    """Host events of the threads that run the step, with their part and the time that is theirs alone."""
    host = [e for e in events if not (e.device or e.asynchronous)]
    threads = {main} | {e.thread for e in host if e.name.startswith(BACKWARD_NODE)}
    forward: dict[tuple[int, int], str] = {}
    # The main thread first, because it holds the forward operators that the nodes of all threads refer to.
    for thread in sorted(threads, key=lambda t: t != main):
        mine = sorted((e for e in host if e.thread == thread), key=lambda e: (e.start, -e.end))
        yield from _walk(mine, forward)


def _walk(
    events: list[Event], forward: dict[tuple[int, int], str]
) -> Iterator[tuple[Event, str, list[tuple[int, int]]]]:
    stack: list[tuple[Event, str, list[tuple[int, int]]]] = []
    cursor = 0

    def close(until: int) -> Iterator[tuple[Event, str, list[tuple[int, int]]]]:
        nonlocal cursor
        while stack and stack[-1][0].end <= until:
            event, _, segments = stack[-1]
            segments.append((cursor, event.end))
            cursor = max(cursor, event.end)
            yield stack.pop()

    for event in events:
        yield from close(event.start)
        if stack:
            stack[-1][2].append((cursor, event.start))
        cursor = event.start
        outer = stack[-1][1] if stack else "dense"
        if event.name.startswith(BACKWARD_NODE):
            part = _named(event) or forward.get((event.forward_thread, event.sequence), "dense")
        else:
            part = _named(event) or outer
            if event.operator and event.sequence >= 0:
                # Operators that make no node bear the next node's number; the last one to start made it.
                forward[event.thread, event.sequence] = part
        stack.append((event, part, []))
    yield from close(max((e.end for e in events), default=0))


def _named(event: Event) -> str | None:
    if event.name.startswith(COMMUNICATION):
        return "communication"
    if event.name.startswith("fbgemm::"):
        return "embedding"
    part = event.name.removeprefix(RANGE)
    return part if part in PARTS and part != event.name else None


def _paint(layers: list[_Layer], start: int, end: int) -> Mapping[str, int]:
    """Time of each part where, at every instant between ``start`` and ``end``, the highest layer shows."""
    layers = [x for x in layers if max(x.start, start) < min(x.end, end)]
    changes = [(max(x.start, start), 1, x) for x in layers] + [(min(x.end, end), -1, x) for x in layers]
    # The base layer, dense on the host, is the last resort: a part that is there besides it goes first.
    active = {(level, part): 0 for level in (_COMPUTE, _COLLECTIVE, _HOST) for part in PARTS if (level, part) != _BASE}
    active[_BASE] = 0
    times: dict[str, int] = dict.fromkeys(PARTS, 0)
    before = start
    for now, change, layer in sorted(changes, key=lambda c: c[0]):
        if now > before:
            times[next(k for k, n in active.items() if n)[1]] += now - before
            before = now
        active[layer.level, layer.part] += change
    return times
