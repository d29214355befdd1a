"""The kernels in C++ and CUDA (`fastsample._C`): same results as `reference`, bit-equal to it for
the step and its noise.

Tensors cross as raw addresses, which this file makes sure of; a launch is bound to a pool's memory
once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import reduce
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from .. import caller
from ..plan.row import READS_SPLIT

try:
    from .. import _C

    MISSING = None
except ImportError as error:
    _C, MISSING = None, f"fastsample._C is not built ({error})"
    if find_spec("fastsample._C") is not None:
        MISSING = f"fastsample._C is there and does not load ({error})"
        caller.warn(
            f"fastsample: its binary is there and does not load ({error}); everything runs on the "
            "slower backend reference"
        )

DTYPES = {getattr(torch, name): name for name in ("float32", "float64", "float16", "bfloat16")}
# stands in for an empty tensor, whose address is 0 and would mean "absent"
_NOWHERE = torch.zeros(1, device="cpu")


def _exchange() -> bool:
    """Can C look at torch's tensors themselves? Not before torch had a DLPack exchange table."""
    try:
        return _C is not None and bool(_C.use_exchange(Tensor))
    except (AttributeError, NotImplementedError):
        return False


EXCHANGE = _exchange()


def seen(tensors: tuple[Tensor | None, ...]) -> Hashable:
    """Where and how each of these tensors lies; by one look in C where C can look at them all."""
    said = _C.seen(tensors) if EXCHANGE else None
    if said is None:
        there = (v if v is None else (v.data_ptr(), v.shape, v.stride(), v.dtype) for v in tensors)
        said = tuple(there)
    return said


def covers(kernel: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if MISSING:
        return MISSING
    if device.type == "cuda":
        if torch.version.hip:
            return f"not built for ROCm {torch.version.hip}, which torch calls cuda"
        if _C.build_info()["cuda"] == "off":
            return "built without CUDA; FASTSAMPLE_CUDA=on builds it where nvcc is"
    elif device.type != "cpu":
        return f"built for the CPU and CUDA, tensors are on {device.type}"
    return None if dtype in DTYPES else f"no kernels for {dtype}"


def address(tensor: Tensor | None) -> int:
    """Where the elements of a dense tensor lie; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr() or _NOWHERE.data_ptr()


def device_name(device: torch.device) -> str:
    """A device, as the binary takes it."""
    return str(device)


def stream_of(device: torch.device) -> int:
    """The current stream of a device, as the C interface takes it."""
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0


def where(device: torch.device) -> dict:
    """Both."""
    return {"device": device_name(device), "stream": stream_of(device)}


def words_of(table) -> np.ndarray:
    """What the host knows of a table's rows, as the table's own words [R, WI] int32 without the
    noise ids.
    """
    at, low = table.layout.at, (1 << READS_SPLIT) - 1
    words = np.zeros((len(table.shapes), table.layout.WI), np.int32)
    for row, shape in zip(words, table.shapes, strict=True):
        row[at("reads") : at("reads") + 2] = shape.reads & low, shape.reads >> READS_SPLIT
        row[at("branches")], row[at("known_reads")] = shape.branches, shape.known_reads
        row[at("dst") : at("dst") + 2] = shape.dst
    return words


def bind(pool) -> Launch | Plain:
    on_cpu = device_name(pool.x.device) == "cpu"
    return Launch(pool) if EXCHANGE and on_cpu else Plain(pool)


class Plain:
    """The step over a pool's memory, by addresses: the pool is the caller's to keep."""

    def __init__(self, pool):
        # the C interface has the pool's names
        held = {name: address(v) for name, v in vars(pool).items() if isinstance(v, Tensor)}
        for name in ("mask", "known"):
            value = getattr(pool, name)
            if value is not None:
                held[f"{name}_batch_stride"] = 0 if value.shape[0] == 1 else pool.elements
        self._indexed, self._rows = pool.f_index is not None, pool.row is not None
        device = device_name(pool.x.device)
        self._device = None if device == "cpu" else pool.x.device
        held |= dict(batch=pool.batch, elements=pool.elements, pool=pool.x.shape[0])
        inner = pool.inner if pool.groups > 1 else 0
        held |= dict(groups=pool.groups, inner=inner, copies=pool.copies)
        held |= dict(channels=pool.channels or 1)
        held |= dict(x=address(pool.x), slots=address(pool.slots) if len(pool.slots) else 0)
        held |= dict(slot_stride=pool.slots.stride(0) if pool.x.numel() else 0, device=device)
        held |= dict(state_dtype=DTYPES[pool.x.dtype], model_dtype=DTYPES[pool.model_dtype])
        self.step, self._shapes = _C.Step(**pool.table.layout._asdict(), **held), None
        self.use(pool.table)

    def use(self, table) -> None:
        """Go by this table, of the same layout."""
        self.step.set("table_f", address(table.f))
        self.step.set("table_i", address(table.i))
        self.step.set("table_rows", table.f.shape[0])
        if self._device is not None and not self._rows and table.shapes is not self._shapes:
            self._shapes, self._words = table.shapes, words_of(table)  # for a launch by row number
            self.step.set("row_words", self._words.ctypes.data)

    def __call__(self, row, f=(), noise=(), x_in=None, x_out=None) -> None:
        step = self.step
        if noise:
            step.set("noise", [address(n) for n in noise])
        if self._indexed:
            step.set("outputs", max((v.shape[0] for v in f if v is not None), default=0))
        if self._device is not None:
            step.set("stream", stream_of(self._device))
        ends = [(n, v) for n, v in (("x_in", x_in), ("x_out", x_out)) if v is not None]
        for name, tensor in ends:
            step.set(name, address(tensor))
        step.at(-1 if row is None else row, *(address(v) for v in f))
        for name, _ in ends:
            step.set(name, 0)
        if noise:
            step.set("noise", [])


class Launch(Plain):
    """The same with take and carry, which look at the tensors in C."""

    def __init__(self, pool):
        super().__init__(pool)
        G, sizes = pool.table.layout.G, pool.x.shape[1:]
        like = {"dtype": pool.model_dtype, "device": pool.x.device}
        f = torch.empty_strided((G * pool.batch, *sizes), pool.x.stride(), **like)
        self.step.expect(f, G)
        self.step.expect_state(pool.x)
        self.take, self.carry, self.lies = self.step.take, self.step.carry, self.step.lies


def fill(out: Tensor, seed: Tensor, noise_id: int, stage: Tensor | None = None) -> None:
    """out[b] = normal(seed[b], noise_id), in place; out [B, ...] float32 or float64, contiguous."""
    sizes = dict(batch=out.shape[0], elements=_elements(out), id=noise_id & 0xFFFFFFFF)
    ends = dict(out=out.data_ptr(), seed=seed.data_ptr(), stage=address(stage))
    _C.noise_fill(**ends, **sizes, dtype=DTYPES[out.dtype], **where(out.device))


def energy(v: Tensor) -> float:
    """sum v² of a contiguous tensor, NaN or Inf where an element is."""
    return _C.energy(v.data_ptr(), v.numel(), DTYPES[v.dtype])


def _elements(x: Tensor) -> int:
    return x[0].numel() if x.shape[0] else 0


def _common(*groups: Sequence[Tensor]) -> tuple[torch.dtype, list[list[Tensor]]]:
    """The smallest dtype that holds every tensor exactly, and the tensors in it, contiguous."""
    dtype = reduce(torch.promote_types, (t.dtype for group in groups for t in group))
    return dtype, [[t.to(dtype).contiguous() for t in group] for group in groups]


def _room(size: int, device: torch.device) -> tuple[Tensor, dict]:
    """Memory of the device for a kernel to work in, and the words that tell the kernel of it."""
    room = torch.empty(size, dtype=torch.uint8, device=device)
    return room, {"workspace": address(room), "workspace_bytes": size}


def moments(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    dtype, (a, b) = _common(a, b)
    batch = a[0].shape[0]
    dots = a[0].new_zeros(batch, len(a), len(b), dtype=torch.float64)
    peaks = a[0].new_zeros(batch, len(a), dtype=torch.float64)
    arrays = dict(a=[t.data_ptr() for t in a], b=[t.data_ptr() for t in b])
    sizes = dict(batch=batch, elements=_elements(a[0]))
    ends = dict(dots=dots.data_ptr(), max_abs=peaks.data_ptr())
    sizes |= dict(dtype=DTYPES[dtype], **where(dots.device))
    held, room = _room(_C.moments_workspace(P=len(a), Q=len(b), **sizes), dots.device)
    _C.moments(**arrays, **sizes, **ends, **room)
    return dots, peaks


def cost_matrix(U: Sequence[Tensor], c: Tensor, X: Tensor, band: Tensor, p: float = 2.0) -> Tensor:
    dtype, (U, (X,)) = _common(U, [X])
    c, band = c.double().contiguous(), band.int().contiguous()
    sizes = dict(zip(("batch", "I", "D"), U[0].shape, strict=True)) | {"J": X.shape[1]}
    out = X.new_empty(sizes["batch"], sizes["I"], sizes["J"], dtype=torch.float64)
    arrays = dict(U=[u.data_ptr() for u in U], c=c.data_ptr(), X=X.data_ptr())
    arrays |= dict(band=band.data_ptr(), out=out.data_ptr())
    sizes |= dict(dtype=DTYPES[dtype], **where(out.device))
    held, room = _room(_C.cost_workspace(terms=len(U), **sizes), out.device)
    _C.cost_matrix(**arrays, **sizes, **room, p=p)
    return out


def cost_gather(U: Sequence[Tensor], c: Tensor, i_star: Tensor) -> Tensor:
    dtype, (U,) = _common(U)
    c, i_star = c.double().contiguous(), i_star.int().contiguous()
    sizes = dict(zip(("batch", "I", "D"), U[0].shape, strict=True)) | {"J": c.shape[2]}
    out = U[0].new_empty(sizes["batch"], sizes["J"], sizes["D"], dtype=dtype)
    stride = sizes["J"] if i_star.dim() == 2 else 0
    arrays = dict(U=[u.data_ptr() for u in U], c=c.data_ptr(), i_star=i_star.data_ptr())
    arrays |= dict(i_star_batch_stride=stride, out=out.data_ptr())
    _C.cost_gather(**arrays, **sizes, dtype=DTYPES[dtype], **where(out.device))
    return out
