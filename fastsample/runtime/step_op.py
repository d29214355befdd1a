"""`fastsample::step_`: one row of a plan on memory that it is given, as an op that torch's
compilers keep in their graphs.

    step_(x, slots, model_input, status, x_out, f, table_f, table_i, seed, stage, scale,
          noise_scale, mask, known, noise, row, dims)

runs row `row` (`fastsample.kernels.reference.step.row`) for every sample and writes x or x_out,
slots, model_input and status in place. All that it works on is a tensor in its signature, so one
graph serves every plan of a program; the launch bound to that memory is looked up by what the
tensors are, and made where there is none.

x             [B,*] float32 or float64, sample after sample, each dense in any memory format
slots         [S,n], n >= B·D: each slot's numbers first in its row
model_input   [copies*B,*] in the model's dtype, which is x's without one
status        [B] int32, as `fastsample.kernels.backend` says
x_out         as x: where the state is written in its place
f             up to G model outputs [B,*] (None: absent), or all as one [G*B,*]
table_f       [R,WF] of x's dtype, table_i [R,WI] int32: the rows
seed, stage   [B] int64, [B] int32
scale         [B,K], noise_scale [B], mask and known, both or none, [B,*] or [1,*]; of x's dtype
noise         L draws [B,*] (None: Philox's, counted as they lie where `Pool.channels` is None)
dims          S, G, L, K, E, copies

Raises ValueError, one sentence, for tensors that do not fit; RuntimeError for one that requires
grad, which a launch drops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..kernels import native
from ..kernels.backend import STATES, alike, bound, select
from ..kernels.ops import LIBRARY
from ..plan.row import Layout
from .arguments import MODELS
from .pool import Pool, dense, placed, recorded

MEMORY = ("x", "slots", "model_input", "status", "table_f", "table_i", "seed", "stage")
MEMORY += ("scale", "noise_scale", "mask", "known")
MOST = 256  # launches remembered; they are addresses and hold no memory
_bound: dict[tuple, Callable] = {}


def step_(
    x: Tensor,
    slots: Tensor,
    model_input: Tensor | None,
    status: Tensor,
    x_out: Tensor | None,
    f: Sequence[Tensor | None],
    table_f: Tensor,
    table_i: Tensor,
    seed: Tensor,
    stage: Tensor | None,
    scale: Tensor | None,
    noise_scale: Tensor | None,
    mask: Tensor | None,
    known: Tensor | None,
    noise: Sequence[Tensor | None],
    row: int,
    dims: Sequence[int],
) -> None:
    """The op's kernel; see the file."""
    memory = x, slots, model_input, status, table_f, table_i, seed
    memory += stage, scale, noise_scale, mask, known
    key = *dims, native.seen(memory)
    if torch.is_grad_enabled():
        _count(memory, x_out, f, noise)
    launch = _bound.get(key)
    if launch is None:
        launch = _bind(key, dims, *memory)
    if noise or len(f) > 1 or not launch.carry(row, f[0] if f else None, None, x_out):
        _checked(launch, x, model_input, x_out, f, noise, row, dims)


def _count(memory: Sequence[Tensor | None], x_out, f, noise) -> None:
    """Refuse what requires grad, and count the write for graphs that keep what is written."""
    if any(v is not None and v.requires_grad for v in (*memory, x_out, *f, *noise)):
        raise RuntimeError(
            "step_: an argument requires grad, and a launch keeps none; detach it, or use "
            "Sampler(..., differentiable=True)"
        )
    written = [v for v in (*memory[:4], x_out) if v is not None and not v.is_inference()]
    torch.autograd.graph.increment_version(written)


def _bind(key: tuple, dims: Sequence[int], *memory: Tensor | None) -> Callable:
    """The launch over this memory, checked; remembered where it goes by addresses alone."""
    held, (*sizes, copies) = dict(zip(MEMORY, memory, strict=True)), dims
    x, slots, at = held["x"], held["slots"], Layout(*sizes)
    if x.dtype not in STATES or x.dim() < 1 or not alike(x, dense(x)):
        raise ValueError(
            f"step_: the state is {x.dtype} {list(x.shape)} of strides {list(x.stride())}; float32 "
            "or float64 [B, *], dense, sample after sample, is accepted"
        )
    model = x.dtype if held["model_input"] is None else held["model_input"].dtype
    _fits(held, at, copies, model if model in MODELS else x.dtype)
    strides = slots.shape[1], *x.stride()
    held["slots"] = slots.as_strided((at.S, *x.shape), strides, slots.storage_offset())
    table = recorded(held.pop("table_f"), held.pop("table_i"), at)
    own = Pool(table, model, copies=copies, **held)
    launch = bound(select("step", x.device, x.dtype), own)
    if hasattr(launch, "use"):
        if len(_bound) >= MOST:
            _bound.clear()
        _bound[key] = launch
    return launch


def _fits(held: dict[str, Tensor | None], at: Layout, copies: int, model: torch.dtype) -> None:
    """Refuse memory beside the state that is not as the file says."""
    x, slots, (batch, *sample) = held["x"], held["slots"], held["x"].shape
    number = max(slots.shape[-1] if slots.dim() else 0, x.numel())
    each, samples, state = [(batch,)], [(batch, *sample), (1, *sample)], x.dtype
    needed = {
        "slots": ([(at.S, number)], state),
        "model_input": ([(copies * batch, *sample)], model),
        "status": (each, torch.int32),
        "table_f": ([(len(held["table_i"]), at.WF)], state),
        "table_i": ([(len(held["table_f"]), at.WI)], torch.int32),
        "seed": (each, torch.int64),
        "stage": (each, torch.int32),
        "scale": ([(batch, at.K)], state),
        "noise_scale": (each, state),
        "mask": (samples, state),
        "known": (samples, state),
    }
    for name, (shapes, dtype) in needed.items():
        value = held[name]
        if value is None:
            continue
        kind = value.shape in shapes and value.dtype == dtype and value.device == x.device
        image = name in ("model_input", "mask", "known")
        if not kind or not (alike(value, x.stride()) if image else value.is_contiguous()):
            said = " or ".join(str(list(shape)) for shape in shapes)
            raise ValueError(
                f"step_: {name} has shape {list(value.shape)} and strides {list(value.stride())}, "
                f"{value.dtype} on {value.device}; {said}, dense as the state of {list(x.shape)}, "
                f"{dtype} on {x.device}, is accepted"
            )
    if (held["mask"] is None) != (held["known"] is None):
        raise ValueError("step_: mask or known is given without the other; both are accepted")


def _like(value: Tensor, x: Tensor, dtype: torch.dtype) -> bool:
    """Has it the shape and place of x, in this dtype?"""
    return value.shape == x.shape and value.dtype == dtype and value.device == x.device


def _checked(launch, x, model_input, x_out, f, noise, row: int, dims: Sequence[int]) -> None:
    """A launch whose outputs, draws or x_out were not taken at a look."""
    G, L, model = dims[1], dims[2], x.dtype if model_input is None else model_input.dtype
    whole = len(f) == 1 and f[0] is not None and G > 1
    if whole and f[0].shape == (G * x.shape[0], *x.shape[1:]):
        f = f[0].unflatten(0, (G, -1)).unbind(0)
    for name, values, most, dtype in (
        ("model outputs are", f, G, model),
        ("noise is", noise, L, x.dtype),
    ):
        there = [v for v in values if v is not None]
        if len(values) > most or not all(_like(v, x, dtype) for v in there):
            said = [f"{list(v.shape)} {v.dtype} on {v.device}" for v in there]
            raise ValueError(
                f"step_: {name} {said} for a state of {list(x.shape)}; up to {most} of that shape "
                f"in {dtype} on {x.device} are accepted"
            )
    if x_out is not None and not (_like(x_out, x, x.dtype) and alike(x_out, x.stride())):
        raise ValueError(
            f"step_: x_out is {list(x_out.shape)} {x_out.dtype} on {x_out.device}; a tensor as the "
            f"state, {list(x.shape)} {x.dtype} on {x.device}, is accepted"
        )
    laid = lambda values: [v if v is None else placed(v, x.stride(), v.dtype) for v in values]
    launch(row, laid(f), laid(noise), None, x_out)


LIBRARY.define(
    "step_(Tensor(a!) x, Tensor(b!) slots, Tensor(c!)? model_input, Tensor(d!) status, "
    "Tensor(e!)? x_out, Tensor?[] f, Tensor table_f, Tensor table_i, Tensor seed, Tensor? stage, "
    "Tensor? scale, Tensor? noise_scale, Tensor? mask, Tensor? known, Tensor?[] noise, int row, "
    "int[] dims) -> ()"
)
LIBRARY.impl("step_", step_, "CompositeExplicitAutograd")
torch.library.register_fake("fastsample::step_", lambda *_: None, lib=LIBRARY)
STEP = torch.ops.fastsample.step_.default
