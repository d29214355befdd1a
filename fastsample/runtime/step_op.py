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
scale         [B,K], noise_scale [B], mask and known [B,*] or [1,*], all of x's dtype
noise         L draws [B,*] (None: Philox's, which counts elements as they lie)
dims          S, G, L, K, E, copies

Raises ValueError, one sentence, for tensors that do not fit; RuntimeError for one that requires
grad, which a launch drops.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.backend import STATES, Looking, alike, bound, select
from ..kernels.ops import LIBRARY
from ..plan.row import Layout
from .arguments import MODELS
from .pool import Pool, dense, placed, recorded

MOST = 256  # launches remembered; they are addresses and hold no memory
_bound: dict[tuple, object] = {}


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
    key = *dims, *[v if v is None else (v.data_ptr(), v.shape, v.stride(), v.dtype) for v in memory]
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


def _bind(key: tuple, dims, x, slots, model_input, status, table_f, table_i, seed, *options):
    """The launch over this memory, checked, and remembered where it goes by addresses alone."""
    *sizes, copies = dims
    at, model = Layout(*sizes), x.dtype if model_input is None else model_input.dtype
    if x.dtype not in STATES or x.dim() < 1 or not (x.numel() == 0 or alike(x, dense(x))):
        raise ValueError(
            f"step_: the state is {x.dtype} {list(x.shape)} of strides {list(x.stride())}; float32 "
            "or float64 [B, *], dense, sample after sample, is accepted"
        )
    _fits(x, slots, at, (model_input, copies, model), status, table_f, table_i, seed, options)
    stage, scale, noise_scale, mask, known = options
    slots = slots.as_strided(
        (at.S, *x.shape), (slots.shape[1], *x.stride()), slots.storage_offset()
    )
    table = recorded(table_f, table_i, at)
    own = Pool(table, model, x, slots, status, seed, model_input=model_input, copies=copies)
    own.stage, own.scale, own.noise_scale, own.mask, own.known = options
    launch = bound(select("step", x.device, x.dtype), own)
    if not isinstance(launch, Looking):
        if len(_bound) >= MOST:
            _bound.clear()
        _bound[key] = launch
    return launch


def _fits(x, slots, at: Layout, asked, status, table_f, table_i, seed, options) -> None:
    """Refuse memory beside the state that is not as the file says."""
    (batch, *sample), state, (model_input, copies, model) = x.shape, x.dtype, asked
    stage, scale, noise_scale, mask, known = options
    number = max(slots.shape[-1] if slots.dim() else 0, x.numel())
    samples, model = [(batch, *sample), (1, *sample)], model if model in MODELS else state
    needed = {
        "slots": (slots, [(at.S, number)], state),
        "model_input": (model_input, [(copies * batch, *sample)], model),
        "status": (status, [(batch,)], torch.int32),
        "table_f": (table_f, [(len(table_i), at.WF)], state),
        "table_i": (table_i, [(len(table_f), at.WI)], torch.int32),
        "seed": (seed, [(batch,)], torch.int64),
        "stage": (stage, [(batch,)], torch.int32),
        "scale": (scale, [(batch, at.K)], state),
        "noise_scale": (noise_scale, [(batch,)], state),
        "mask": (mask, samples, state),
        "known": (known, samples, state),
    }
    for name, (value, shapes, dtype) in needed.items():
        if value is None:
            continue
        image = name in ("model_input", "mask", "known")
        lies = _lies(value, x) if image else value.is_contiguous()
        kind = value.dtype == dtype and value.device == x.device
        if value.shape not in shapes or not kind or not lies:
            said = " or ".join(str(list(shape)) for shape in shapes)
            raise ValueError(
                f"step_: {name} has shape {list(value.shape)} and strides {list(value.stride())}, "
                f"{value.dtype} on {value.device}; {said}, dense as the state of {list(x.shape)}, "
                f"{dtype} on {x.device}, is accepted"
            )


def _lies(value: Tensor, x: Tensor) -> bool:
    """Do its samples lie as those of x do?"""
    return value.numel() == 0 or (value.dim() == x.dim() and alike(value, x.stride()))


def _like(value: Tensor, x: Tensor) -> bool:
    """Has it the shape, dtype, place and order of x?"""
    kind = value.shape == x.shape and value.dtype == x.dtype and value.device == x.device
    return kind and _lies(value, x)


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
        fits = all(v.shape == x.shape and v.dtype == dtype and v.device == x.device for v in there)
        if len(values) > most or not fits:
            said = [f"{list(v.shape)} {v.dtype} on {v.device}" for v in there]
            raise ValueError(
                f"step_: {name} {said} for a state of {list(x.shape)}; up to {most} of that shape "
                f"in {dtype} on {x.device} are accepted"
            )
    if x_out is not None and not _like(x_out, x):
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
