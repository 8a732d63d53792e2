"""Ids sent to the ranks that own their rows while the model still computes the batch before.

A forward over sharded tables first tells the other ranks how many ids come, waits for what they tell, and then sends
the ids. Here both happen one batch ahead, between the parts of a step that need no answer::

    step i:   read batch i + 1, send its sizes │ forward of i │ send the ids of i + 1 │ backward of i, optimizer

Nothing else is done ahead, so all numbers stay the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torchrec.distributed.types import ShardedModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_budget.training.wrapped_loader import WithState, WrappedLoader, is_stateful

# Batches that can be out at once: a trainer that does not know the length of a loader asks for one before it needs it.
_OUT = 3
_END = object()


def pipelined(loader: Any, module: nn.Module, device: torch.device) -> SparseDistPipeline:
    """A :class:`SparseDistPipeline` around a training loader, with a state if that has one.

    Args:
        loader: as many batches, of sizes that the sharding allows, on every rank. The outermost wrapper is this one.
        module: root of the model, called once or more per step; its collections are sharded by the first batch.
        device: where the model lives.
    """
    return (_StatefulPipeline if is_stateful(loader) else SparseDistPipeline)(loader, module, device)


class SparseDistPipeline(WrappedLoader):
    """The batches of a loader, on the device, each with the ids of the next under way.

    A sharded collection finds ids that were sent ahead by the identity of their tensor. Any other forward, of
    validation or of a prediction between epochs, goes the ordinary way and leaves what is under way alone. What a
    collection takes is seen in the first steps, which are ordinary ones: a ``KeyedJaggedTensor`` that is an attribute
    of the batch is sent ahead to the collections that were given it unchanged.

    An exception of the loader is raised one batch early, before ranks wait for each other. On a GPU copies overlap
    where batches come in pinned memory, or already on the device from :class:`~.prefetch.Prefetch`; a batch without
    ``record_stream`` goes the ordinary way.

    Args:
        loader, module, device: as :func:`pipelined`.

    Source: TorchRec's ``TrainPipelineSparseDist``, which needs a training loop of its own and a traceable model.
    """

    def __init__(self, loader: Any, module: nn.Module, device: torch.device) -> None:
        super().__init__(loader)
        self.module = module
        self.device = device
        self._takes: dict[str, int] = {}

    @property
    def even_over_ranks(self) -> bool:
        """As the loader's; see :func:`~lightning_budget.training.even_batches.even_batches`."""
        return getattr(self.loader, "even_over_ranks", False)

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing is read before the trainer has set the epoch.
        with _Traffic(self.module, self.device, self._takes) as traffic:
            source = iter(self.loader)
            ahead = self._read(source, traffic)
            while ahead is not None:
                here, ahead = ahead, self._read(source, traffic)
                traffic.hand_over(here)
                self._seen = here.state
                yield here.batch
            # A trainer that asks for more before its last step makes that an ordinary one.
            self._seen = self._snapshot()

    def _read(self, source: Iterator[Any], traffic: _Traffic) -> _Ahead | None:
        with torch.cuda.stream(traffic.side):
            batch = next(source, _END)
            return None if batch is _END else traffic.send(batch, self._snapshot())


class _StatefulPipeline(WithState, SparseDistPipeline):
    pass


class _Sent:
    """The ids of one batch on their way to one collection: the three stages of TorchRec's ``ShardedModule.forward``."""

    def __init__(self, collection: ShardedModule[Any, Any, Any, Any], ids: KeyedJaggedTensor) -> None:
        self.context = collection.create_context()
        self._sizes = collection.input_dist(self.context, ids)
        self._ids: Any = None

    def follow(self) -> None:
        """Wait for the sizes and send the ids, once."""
        if self._ids is None:
            self._ids = self._sizes.wait()

    def arrive(self) -> Any:
        self.follow()
        return self._ids.wait()


@dataclass(eq=False)
class _Ahead:
    batch: Any
    state: Any
    ids: list[KeyedJaggedTensor]
    sent: dict[str, _Sent] = field(default_factory=dict)
    copied: torch.cuda.Event | None = None


@dataclass(eq=False)
class _Forward:
    """Stands in for a collection's forward."""

    traffic: _Traffic
    name: str
    collection: ShardedModule[Any, Any, Any, Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        sent = self.traffic.take(self.name, [*args, *kwargs.values()])
        if sent is None:
            return type(self.collection).forward(self.collection, *args, **kwargs)
        return self.collection.compute_and_output_dist(sent.context, self.traffic.arrived(sent))


class _Traffic:
    """What is under way to the collections of a module during one pass over the data.

    Args:
        takes: which of a batch's ids each collection takes, by its name; learned here, kept from pass to pass.
    """

    def __init__(self, module: nn.Module, device: torch.device, takes: dict[str, int]) -> None:
        self.module, self.device, self._takes = module, device, takes
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self.side is not None:
            self.side.wait_stream(torch.cuda.current_stream(device))
        self._out: deque[_Ahead] = deque(maxlen=_OUT)
        self._forwards = [_Forward(self, name, collection) for name, collection in _collections(module)]

    def __enter__(self) -> _Traffic:
        for forward in self._forwards:
            forward.collection.forward = forward
        self._hook = self.module.register_forward_hook(self._follow)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        for forward in self._forwards:
            # Another pass may have begun before this one was given up.
            if vars(forward.collection).get("forward") is forward:
                del forward.collection.forward
        self._out.clear()

    def send(self, batch: Any, state: Any) -> _Ahead:
        """Copy a batch to the device and tell the other ranks how many of its ids come; on the side stream."""
        if self.side is None:
            ahead = _Ahead(batch, state, _ids(batch))
        elif not hasattr(batch, "record_stream"):
            return _Ahead(batch, state, [])
        else:
            batch = batch.to(self.device, non_blocking=True)
            ahead = _Ahead(batch, state, _ids(batch), copied=torch.cuda.Event())
            assert ahead.copied is not None
            ahead.copied.record(self.side)
        for forward in self._forwards:
            i = self._takes.get(forward.name)
            if i is not None and i < len(ahead.ids):
                ahead.sent[forward.name] = _Sent(forward.collection, ahead.ids[i])
        # What no forward has asked for falls out at the other end.
        self._out.append(ahead)
        return ahead

    def hand_over(self, ahead: _Ahead) -> None:
        """Let the stream of the model use the batch."""
        if ahead.copied is not None:
            main = torch.cuda.current_stream(self.device)
            main.wait_event(ahead.copied)
            ahead.batch.record_stream(main)

    def _follow(self, *_: Any) -> None:
        # After the forward, so that the device has work while the host waits. Not in evaluation, whose tensors may be
        # unfit for training.
        if self.module.training:
            with torch.cuda.stream(self.side):
                for ahead in self._out:
                    for sent in ahead.sent.values():
                        sent.follow()

    def take(self, name: str, arguments: list[Any]) -> _Sent | None:
        """What was sent ahead of a forward of these arguments, if anything; and learn what the collection takes."""
        given = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], KeyedJaggedTensor) else None
        for ahead in self._out:
            for i, ids in enumerate(ahead.ids):
                # A trainer that moves the batch makes new objects of the same tensors.
                if given is not None and given.values() is ids.values():
                    if self.module.training:
                        self._takes[name] = i
                    return ahead.sent.pop(name, None)
        if self.module.training:
            self._takes.pop(name, None)
        return None

    def arrived(self, sent: _Sent) -> Any:
        """Wait for ids, and let the stream of the model use them."""
        with torch.cuda.stream(self.side):
            ids = sent.arrive()
        if self.side is not None:
            main = torch.cuda.current_stream(self.device)
            main.wait_stream(self.side)
            ids.record_stream(main)
            sent.context.record_stream(main)
        return ids


def _collections(module: nn.Module) -> Iterator[tuple[str, ShardedModule[Any, Any, Any, Any]]]:
    for name, part in module.named_modules():
        # With a forward of its own, a collection does more than the three stages.
        if isinstance(part, ShardedModule) and type(part).forward is ShardedModule.forward:
            instead = vars(part).get("forward")
            if instead is None or isinstance(instead, _Forward):
                yield name, part


def _ids(batch: Any) -> list[KeyedJaggedTensor]:
    return [part for part in getattr(batch, "__dict__", {}).values() if isinstance(part, KeyedJaggedTensor)]
