"""Counts what a sampler asks of a device, on a machine that has none: kernel launches, syncs, host
copies, allocations and bytes, for each step and for a whole call.

    with counting() as device:
        z = device.put(noise)
        end, tally = device.call(lambda model: sampler(noise=z), outputs)

The device is torch's "meta", given memory: each tensor on it is a plain torch.Tensor, so every
loop takes the path it takes on a GPU, and its numbers lie on the host, where they are computed, so
that `.item()` answers and the end can be compared with the CPU's. (torch's own FakeTensors have no
numbers, are no plain tensors, and cannot be indexed in a build of torch without CUDA.) What torch
does there passes a dispatch mode; what a backend of ours does is recorded by a backend of its own,
which is chosen on this device alone.

Counted as CUDA does them: a launch for each operator that computes (some of torch's take more than
one: the peers' launches are the least there can be) and for each launch of a backend, which is one
kernel by the contract that the backends' own tests hold them to; none for views. A copy between
host and device is a host copy, and a sync unless asked for with non_blocking; reading a number or a
shape that depends on numbers is both. Allocations are requests to torch's caching allocator. Bytes
are those a kernel must move: each operand once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import pairwise
from math import prod
from operator import add, sub
from unittest import mock
from weakref import WeakKeyDictionary

import torch
import torch._dynamo  # else a mode of ours may meet its import, which ends halfway under one
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from fastsample.kernels import backend, transforms
from fastsample.runtime import arguments
from fastsample.runtime import pool as pools

THERE = torch.device("meta")
NAME, COMPOSITE = "recorded", "CompositeImplicitAutograd"
# operators whose result, or its shape, the host must know before it goes on
READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "is_nonzero"}
READS |= {"_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
OVERWRITES = {"fill_", "zero_", "copy_", "normal_", "uniform_", "random_"}


@dataclass(frozen=True)
class Counts:
    """Launches, syncs, host copies, allocations, and bytes moved by kernels."""

    launches: int = 0
    syncs: int = 0
    host_copies: int = 0
    allocations: int = 0
    bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(add, astuple(self), astuple(other)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*map(sub, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Tally:
    """Of a call: what it did before it first asked the model, between one evaluation and the next,
    and after the last; the model's own doing is left out.
    """

    start: Counts
    steps: tuple[Counts, ...]
    end: Counts

    @property
    def whole(self) -> Counts:
        return sum(self.steps, self.start + self.end)


class Device(TorchDispatchMode):
    """A device that is not there. counts: what was asked of it so far."""

    def __init__(self) -> None:
        super().__init__()
        self.counts, self._memory = Counts(), {}

    def put(self, value: Tensor) -> Tensor:
        """A copy of the value on the device, not counted."""
        with _disable_current_modes():
            return self._fresh(value.detach().clone(memory_format=torch.preserve_format))

    def see(self, value: Tensor | None) -> Tensor | None:
        """The numbers of a tensor on the device, in the memory that they have on the host."""
        if not _there(value):
            return value
        memory = self._memory[value.untyped_storage()._cdata]
        at = value.storage_offset(), value.size(), value.stride()
        return torch.empty(0, dtype=value.dtype, device="cpu").set_(memory, *at)

    def add(self, **counts: int) -> None:
        self.counts += Counts(**counts)

    def call(self, work: Callable, outputs: Sequence[Tensor]) -> tuple[object, Tally]:
        """What work(model) returns, and what it did; model(...) hands out `outputs` in turn."""
        marks, turn = [self.counts], iter(outputs)

        def model(*given, **words):
            marks.append(self.counts)
            return next(turn)

        end = work(model)
        marks.append(self.counts)
        start, *steps, last = (b - a for a, b in pairwise(marks))
        return end, Tally(start, tuple(steps), last)

    # -- what torch does ---------------------------------------------------------------------------
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat, form = tree_flatten((args, kwargs))
        made = any(isinstance(v, torch.device) and v == THERE for v in flat)
        if not made and not any(map(_there, flat)):
            return operator(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), COMPOSITE):
            with self:
                return operator.decompose(*args, **kwargs)
        returns = operator._schema.returns
        if any(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            return operator(*args, **kwargs)  # a view: its numbers follow from where it stands
        moved = lambda v: torch.device("cpu") if isinstance(v, torch.device) else self.see(v)
        host = list(map(moved, flat))
        given = {
            id(seen): own for seen, own in zip(host, flat, strict=True) if isinstance(own, Tensor)
        }
        host_args, host_kwargs = tree_unflatten(host, form)
        out = operator(*host_args, **host_kwargs)
        name = operator.overloadpacket.__name__
        to_host = name == "_to_copy" and kwargs.get("device") is not None and not made
        wrap = lambda v: given[id(v)] if id(v) in given else v if to_host else self._fresh(v)
        out = tree_map(lambda v: wrap(v) if isinstance(v, Tensor) else v, out)
        self._count(name, args, kwargs, flat, out, given)
        return out

    def _count(self, name: str, args, kwargs, flat: Sequence, out, given: dict) -> None:
        tensors = [v for v in flat if isinstance(v, Tensor)]
        results = [v for v in tree_leaves(out) if isinstance(v, Tensor)]
        own = {id(v) for v in given.values()}
        fresh = [v for v in results if _there(v) and id(v) not in own]
        self.add(allocations=len(fresh))
        if name in EMPTY:
            return
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], out)
            if _there(source) != _there(target):
                blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
                self.add(host_copies=1, syncs=int(blocking))
                return
        elif name in READS or (name == "index" and _by_truth(args[1])):
            self.add(syncs=1, host_copies=1)
            if name == "_local_scalar_dense":
                return
        elif any(v.device.type == "cpu" and v.dim() for v in tensors):
            raise RuntimeError(f"counted: {name} was given tensors on the host and on the device")
        skipped = 1 if name in OVERWRITES else 0
        read = tensors[skipped:]
        moved = sum(map(_bytes, [v for v in (*read, *results) if _there(v)]))
        self.add(launches=int(any(map(Tensor.numel, (*results, *tensors)))), bytes=moved)

    def _fresh(self, value: Tensor) -> Tensor:
        like = {"dtype": value.dtype, "device": THERE}
        shell = torch.empty_strided(value.size(), value.stride(), **like)
        self._memory[shell.untyped_storage()._cdata] = value.untyped_storage()
        return shell


@contextmanager
def counting() -> Iterator[Device]:
    """The device, for as long as the block lasts; in it `Recorded` is a backend, the first."""
    device, watching = Device(), transforms.modes
    with (
        mock.patch.object(backend, "BACKENDS", [NAME, *backend.BACKENDS]),
        mock.patch.dict(sys.modules, {f"{backend.__package__}.{NAME}": Recorded(device)}),
        mock.patch.dict(backend._chosen),
        mock.patch.object(pools, "_tables", WeakKeyDictionary()),
        # a mode that only watches is no transform: loops go as they go without it
        mock.patch.object(transforms, "modes", lambda: watching() - 1),
        mock.patch.object(arguments, "numberless", lambda device: False),
        FromNumbers(),
        device,
    ):
        yield device


class FromNumbers(TorchFunctionMode):
    """torch.tensor of numbers goes to the device as a copy from the host; torch's own for meta
    would leave the numbers out.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = function in (torch.tensor, torch.as_tensor) and not _there(args[0])
        if made and kwargs.get("device") is not None and torch.device(kwargs["device"]) == THERE:
            return function(*args, **kwargs | {"device": "cpu"}).to(THERE)
        return function(*args, **kwargs)


# -- what a backend of ours does -------------------------------------------------------------------
class Recorded:
    """A backend whose kernels are the CPU's on the device's numbers, and count themselves."""

    def __init__(self, device: Device):
        self._device = device

    @staticmethod
    def _cpu(dtype: torch.dtype):
        return backend.select("step", "cpu", dtype).module

    @staticmethod
    def covers(kernel: str, device: torch.device, dtype: torch.dtype) -> str | None:
        if device != THERE:
            return "records what is asked of a device that is not there"
        return None if kernel == "step" else "records the step and its noise alone"

    def bind(self, pool):
        return Launch(self._device, self._cpu(pool.x.dtype), pool)

    def fill(self, out: Tensor, seed: Tensor, noise_id: int, stage: Tensor | None = None) -> None:
        see = self._device.see
        self._cpu(out.dtype).fill(see(out), see(seed), noise_id, see(stage))
        self._device.add(launches=1, bytes=_bytes(out))


class Launch:
    """One launch of the step, recorded."""

    def __init__(self, device: Device, module, pool):
        self._device, self._pool = device, pool
        seen = {name: device.see(v) for name, v in vars(pool).items() if isinstance(v, Tensor)}
        self._seen = replace(pool, table=self._table(pool.table), **seen)
        self._launch = module.bind(self._seen)

    def _table(self, table):
        return table._replace(f=self._device.see(table.f), i=self._device.see(table.i))

    def use(self, table) -> None:
        self._seen.table = self._table(table)
        if hasattr(self._launch, "use"):
            self._launch.use(self._seen.table)

    def __call__(self, row, f=(), noise=(), x_in=None, x_out=None) -> None:
        see = self._device.see
        self._launch(row, list(map(see, f)), list(map(see, noise)), see(x_in), see(x_out))
        self._device.add(launches=1, bytes=step_bytes(self._seen, row, noise))


def step_bytes(pool, row: int | None, noise: Sequence = ()) -> int:
    """Bytes that a launch over this pool, on the host, must move: each operand that its rows read
    once, each output once. row: as for a launch; samples at a row outside the table rest.
    """
    rows = [row] * pool.batch if row is not None else pool.row.flatten().tolist()
    share = pool.elements // pool.groups
    count = {r: rows.count(r) for r in set(rows) if 0 <= r < pool.table.f.shape[0]}
    drawn = [n is not None for n in noise]
    return sum(n * share * _bytes_per_element(pool, r, drawn) for r, n in count.items())


def _bytes_per_element(pool, row: int, drawn: Sequence[bool]) -> int:
    at, shape = pool.table.layout, pool.table.shapes[row]
    state, model = pool.x.element_size(), torch.empty((), dtype=pool.model_dtype).element_size()
    numbers = pool.table.f[row]
    reads = lambda column: shape.reads >> column & 1
    predicts = reads(at.m) or (pool.preview is not None and numbers[at.at("preview") + 1] != 0)
    x = reads(0) or (predicts and numbers[at.at("p")] != 0)
    known = 2 if shape.known_reads and pool.mask is not None else 0
    given = sum(there and reads(at.noise(k)) for k, there in enumerate(drawn))
    slots = sum(reads(at.slot(s)) for s in range(at.S))
    written = 1 + sum(d >= 0 for d in (shape.du, shape.dv)) + (pool.preview is not None)
    heard = predicts or reads(at.f)  # is f wanted at all?
    outputs = (shape if heard else shape._replace(branches=0)).branches_needed(at)
    inputs = pool.copies if pool.model_input is not None else 0
    return state * (int(bool(x)) + slots + known + given + written) + model * (
        sum(outputs) + inputs
    )


# -- small things ----------------------------------------------------------------------------------
def _there(value: object) -> bool:
    return isinstance(value, Tensor) and value.device == THERE


def _bytes(value: Tensor) -> int:
    """Memory that the tensor shows, an element once however often it is repeated."""
    pairs = zip(value.size(), value.stride(), strict=True)
    return prod(n for n, stride in pairs if stride or n == 0) * value.element_size()


def _by_truth(indices: Sequence) -> bool:
    return any(isinstance(v, Tensor) and v.dtype in (torch.bool, torch.uint8) for v in indices)
