"""What a captured loop can hold, and what it reads: a model that cannot be captured is refused with
the op that it fails at, and one that moved is noticed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from operator import is_, itemgetter
from types import CellType, FunctionType, MethodType

import torch
from torch import Tag, Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, KIND = torch.cuda, "cuda"  # what captures, and the devices that it captures on
OTHERS = "'eager', 'compile-model' and 'compile-loop' are accepted"
COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


def mark(device: torch.device) -> torch.cuda.Event | None:
    """What stands in the device's stream from now on, to be waited for; None on another device."""
    if device.type != KIND:
        return None
    event = CUDA.Event()
    event.record()
    return event


def refuse_device(device: torch.device) -> None:
    """ValueError, one sentence, for a device that captures nothing."""
    if device.type != KIND:
        raise ValueError(
            f"Sampler: mode='graph' captures on a CUDA device and the call is on {device}; {OTHERS}"
        )


def refuse_models(models: Sequence[Callable]) -> None:
    """ValueError, one sentence, where there is no CUDA device or a model makes graphs itself."""
    if not CUDA.is_available():
        raise ValueError(f"Sampler: mode='graph' needs a CUDA device and torch sees none; {OTHERS}")
    for part in chain.from_iterable(map(parts, models)):
        for made in (part, getattr(part, "_compiled_call_impl", None)):
            if _makes_graphs(made):
                name = getattr(part, "__name__", type(getattr(part, "_orig_mod", part)).__name__)
                raise ValueError(
                    f"Sampler: mode='graph' with the model {name} under torch.compile, which "
                    "captures graphs of its own (mode 'reduce-overhead' or 'max-autotune', "
                    "backend 'cudagraphs'); torch.compile(model) and mode "
                    "'max-autotune-no-cudagraphs' are accepted"
                )


def _makes_graphs(made: object) -> bool:
    """Did torch.compile make it, with CUDA graphs of its own?"""
    config = getattr(made, "get_compiler_config", None)
    if config is None:
        return False
    backends = (getattr(part, "compiler_name", None) for part in parts(made))
    return bool((config() or {}).get("triton.cudagraphs")) or "cudagraphs" in backends


def uncapturable(reason: str) -> ValueError:
    return ValueError(f"Sampler: mode='graph' cannot capture the run: {reason}; {OTHERS}")


class Probe(TorchDispatchMode):
    """Watches a run for what a graph cannot hold. read: of all memory but `known` that it reads and
    did not make, the first tensor seen.
    """

    def __init__(self, known: Iterable) -> None:
        super().__init__()
        self.read: dict[int, Tensor] = {}
        self._made = set(map(_storage, known))

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Else torch.compile, met while this watches, gives its function up for good."""
        return True

    def watch(self, rows: Callable) -> None:
        """Run it; ValueError, one sentence, names the first op that waits for the device, copies
        from or to the host, or draws random numbers that a replay would not draw anew.
        """
        before = CUDA.get_sync_debug_mode()
        CUDA.set_sync_debug_mode("error")
        try:
            with self:
                rows()
        except RuntimeError as error:
            if "synchronizing" in str(error):
                raise uncapturable(str(error).split("\n")[0]) from error
            raise
        finally:
            CUDA.set_sync_debug_mode(before)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ for kind in types):
            return NotImplemented  # a subclass says in plain tensors what it does
        kwargs = kwargs or {}
        given = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        fault = self._fault(func, given, kwargs)
        if fault is not None:
            raise uncapturable(f"{func} {fault}{_place()}")
        for v in given:
            if _storage(v) not in self._made:
                self.read.setdefault(_storage(v), v)
        out = func(*args, **kwargs)
        self._made |= {*map(_storage, pytree.tree_leaves(out))} - self.read.keys()
        return out

    def _fault(self, func, given: Sequence[Tensor], words: dict) -> str | None:
        """What of this op a graph cannot hold."""
        host = lambda kind: torch.device(kind).type != KIND
        whole = [v.device for v in given if v.dim() or func in COPIES]
        asked = words.get("device")
        devices = whole if asked is None else [*whole, asked]
        if Tag.nondeterministic_seeded in func.tags:
            if words.get("generator") is not None:
                return "draws random numbers from a generator that is not the graph's"
            if any(map(host, devices)):
                return "draws random numbers on the host"
        if whole and any(map(host, devices)) and not all(map(host, devices)):
            return "copies between host and device"
        if all(host(v.device) for v in given):
            return None
        if func is torch.ops.aten.lift_fresh.default:
            return "makes a tensor of numbers of the host"
        if Tag.data_dependent_output in func.tags or Tag.dynamic_output_shape in func.tags:
            return "waits for numbers of the device"
        return None


def _storage(value: object) -> int:
    """Which memory a tensor lies in."""
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else 0


def _place() -> str:
    """The line of somebody's own that asked for it."""
    mine = (str(torch.__path__[0]), __file__)
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(mine):
            return f" (line {frame.lineno} of {frame.filename})"
    return ""


class Reads:
    """What a graph reads that no call brings, and which of the modules are training."""

    def __init__(self, models: Sequence[Callable], tensors: Iterable[Tensor]) -> None:
        modules = [v for m in models for v in parts(m) if isinstance(v, nn.Module)]
        held = chain.from_iterable((m._parameters, m._buffers, m._modules) for m in modules)
        self._held = [v for v in held if isinstance(v, dict)]
        self._were = list(map(dict.copy, self._held))
        self._single = [v for v in self._held if any(map(_is_single, v.values()))]
        self._members = _members(self._single)
        owned = [v for v in _members(self._held) if isinstance(v, Tensor) and _is_plain(v)]
        self._tensors = list({id(v): v for v in [*owned, *tensors]}.values())
        self._lie = list(map(Tensor.data_ptr, self._tensors))
        self._modules = [v for v in map(vars, modules) if "training" in v]
        self._training = list(map(_training, self._modules))

    def moved(self) -> bool:
        """Has a module other members than it had, does a tensor lie elsewhere, or is a module
        training that was not, or the other way round?

        Lists and dicts compare their values by identity first, in C, and ask others whether they
        are equal: a tensor of several numbers raises then, and one of a single number may be.
        """
        try:
            same = self._held == self._were
        except Exception:  # only what is another object can have raised it
            return True
        return not (
            same
            and all(map(is_, _members(self._single), self._members))
            and list(map(Tensor.data_ptr, self._tensors)) == self._lie
            and list(map(_training, self._modules)) == self._training
        )


_training = itemgetter("training")


def _members(held: Iterable[dict]) -> list:
    return list(chain.from_iterable(map(dict.values, held)))


def _is_single(value: object) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _is_plain(tensor: Tensor) -> bool:
    """Has it an address of its own?"""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def parts(model: object) -> Iterator[object]:
    """The model and what can be seen to belong to it: modules in modules, what a method, a partial
    or a closure holds, the modules and the file's own functions that a function names, callables
    that a callable object has among its attributes.
    """
    queue, seen = [model], set()
    while queue:
        part = queue.pop()
        if id(part) in seen or isinstance(part, type) or not callable(part):
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, nn.Module):
            queue += part.children()
        elif isinstance(part, partial):
            queue += [part.func, *part.args, *part.keywords.values()]
        elif isinstance(part, MethodType):
            queue += [part.__self__, part.__func__]
        elif isinstance(part, FunctionType):
            queue += map(_content, part.__closure__ or ())
            named = map(part.__globals__.get, part.__code__.co_names)
            own = lambda v, file: isinstance(v, FunctionType) and v.__module__ == file
            queue += [v for v in named if isinstance(v, nn.Module) or own(v, part.__module__)]
        queue += getattr(part, "__dict__", {}).values()


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is not set yet
        return None
