"""The step: one row of a plan for each sample of a batch, in one pass.

    f        = sum_g w_g f_g        w_g = U_g + sum_s scale_s V_gs, w_0 = 1; or all of `weights`
    m        = clip(w_0 p x + q f)  or clamp(., -bound, bound) / bound where `bound` is given
    [x' u v] = M [x, r_1..r_S, m, f, f_1..f_G, n_1..n_L]
                                    n_l = normal(seed, id_l) noise_scale, or noise[l] noise_scale
    x'      += mask (ky y + sum_l Cy_l n_l - x')    with a mask and a known image y
    model input = c x' in the model's dtype;   preview x0 = dx x + dm m

Operands outside a row's read mask are never used: they may hold NaN. Coefficients:
`fastsample.kernels.layout`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .backend import STATES, select
from .layout import Layout
from .ops import register

SCHEMA = (
    "(Tensor x, Tensor[] slots, Tensor[] f, Tensor table_f, Tensor table_i, Tensor row, int[] "
    "dims, Tensor? f_index, Tensor? "
    "scale, Tensor? seed, "
    "Tensor? noise_scale, Tensor? weights, Tensor? bound, Tensor[] noise, Tensor? mask, Tensor? "
    "known, SymInt inner, ScalarType? "
    "model_dtype, "
    "bool preview, int[]? structure, str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
    "Tensor)"
)
OPTIONS = (
    "f_index",
    "scale",
    "seed",
    "noise_scale",
    "weights",
    "bound",
    "noise",
    "mask",
    "known",
    "inner",
    "model_dtype",
    "preview",
    "structure",
)


def _kernel(*arguments):
    *first, backend = arguments
    module = select(first[0].device, first[0].dtype, backend).module
    return module.step(*first[:7], **dict(zip(OPTIONS, first[7:], strict=True)))


def _definition(*arguments):
    return reference.step(*arguments[:7], **dict(zip(OPTIONS, arguments[7:-1], strict=True)))


def _fake(x, slots, f, table_f, table_i, row, dims, *options):
    option = dict(zip(OPTIONS, options[:-1], strict=True))
    like = lambda there, dtype=x.dtype: x.new_empty(x.shape if there else (0,), dtype=dtype)
    structure = option["structure"] if option["f_index"] is None else None
    written = [True, True] if structure is None else [structure[3] >= 0, structure[4] >= 0]
    return (
        like(True),
        like(written[0]),
        like(written[1]),
        like(True, option["model_dtype"] or x.dtype),
        like(option["preview"]),
        x.new_empty(x.shape[:1], dtype=torch.int32),
    )


_run = register("step", SCHEMA, _kernel, _fake, _definition)


def _normal(seed: Tensor, noise_id: Tensor, elements: int, backend: str | None) -> Tensor:
    out = torch.empty(seed.shape[0], elements, dtype=torch.float32, device=seed.device)
    fill = select(seed.device, torch.float32, backend).module.fill
    ids = noise_id.tolist()
    if len(set(ids)) == 1:
        fill(out, seed.contiguous(), ids[0] & 0xFFFFFFFF)
        return out
    for b, k in enumerate(ids):
        fill(out[b : b + 1], seed[b : b + 1].contiguous(), k & 0xFFFFFFFF)
    return out


register(
    "normal",
    "(Tensor seed, Tensor noise_id, SymInt elements, str? backend) -> Tensor",
    _normal,
    lambda seed, noise_id, elements, backend: torch.empty(
        seed.shape[0], elements, dtype=torch.float32, device=seed.device
    ),
)


def step(
    x: Tensor,
    slots: Sequence[Tensor],
    f: Sequence[Tensor],
    table_f: Tensor,
    table_i: Tensor,
    row: Tensor,
    dims: Sequence[int],
    *,
    f_index: Tensor | None = None,
    scale: Tensor | None = None,
    seed: Tensor | None = None,
    noise_scale: Tensor | None = None,
    weights: Tensor | None = None,
    bound: Tensor | None = None,
    noise: Sequence[Tensor] = (),
    mask: Tensor | None = None,
    known: Tensor | None = None,
    inner: int = 0,
    model_dtype: torch.dtype | None = None,
    preview: bool = False,
    structure: Sequence[int] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One row for each sample -> (x', u, v, model_input, x0 preview, status); functional,
    differentiable, traceable.

    x [B, *] float32 or float64, the state;  slots: S of [B, *];  f: up to G of [outputs, *], any
    float dtype;  table_f [R, WF] of the state's dtype, table_i [R, WI] int32: stacked plans
    dims = (S, G, L, K, E);  row [B], or [B, groups], element e in group (e / inner) mod groups
    f_index [G, B]: the row of f[g] that belongs to each sample, -1 = this branch is absent; without
    it, sample b takes row b.  scale [B, K], noise_scale [B], weights [B, 1+G], bound [B]
    seed [B] int64, without it 0..B-1;  noise: L of [B, *] instead of Philox;  mask, known [B, *] or
    [1, *];  model_dtype of the model input (the state's by default);  preview: also form x0
    structure (reads, branches, known_reads, du, dv, clip > 0): promises that every sample's row has
    it; u, v then are [0] where unwritten. Without it u and v are [B, *], +0 where a sample's row
    does not write. x0 is [0] without preview.
    status [B] int32, in the low byte 1 bad row, 4 bad f_index (the sample stays as it was; u, v,
    model input and x0 are 0), 8 non-finite x'; above it the row of the first such group. Raises
    ValueError, one sentence, for shapes and dtypes that do not fit: nothing is broadcast.
    """
    _check(x, slots, f, table_f, table_i, row, dims, f_index, inner)
    expand = lambda v: v if v is None else v.expand(x.shape)
    for name, value in (("mask", mask), ("known", known), *(("noise", n) for n in noise)):
        if value is not None and value.shape != x.shape and value.shape != (1, *x.shape[1:]):
            raise ValueError(
                f"step: {name} has shape {list(value.shape)} for a state of {list(x.shape)}; the "
                "same shape or a batch of 1 is accepted"
            )
    return _run(
        x,
        list(slots),
        list(f),
        table_f,
        table_i,
        row,
        list(dims),
        f_index,
        scale,
        seed,
        noise_scale,
        weights,
        bound,
        list(noise),
        expand(mask),
        expand(known),
        inner,
        model_dtype,
        preview,
        None if structure is None else list(structure),
        backend,
    )


def _check(x, slots, f, table_f, table_i, row, dims, f_index, inner) -> None:
    at = Layout(*dims)
    if x.dtype not in STATES:
        raise ValueError(f"step: the state is {x.dtype}; float32 and float64 are accepted")
    if len(slots) != at.S or any(s.shape != x.shape or s.dtype != x.dtype for s in slots):
        raise ValueError(
            f"step: slots are {[list(s.shape) for s in slots]}; {at.S} of {list(x.shape)} "
            f"{x.dtype} are needed"
        )
    if table_f.dim() != 2 or table_f.shape[1] != at.WF or table_f.dtype != x.dtype:
        raise ValueError(
            f"step: table_f is {list(table_f.shape)} {table_f.dtype}; rows of {at.WF} numbers in "
            f"{x.dtype} are needed"
        )
    if (
        table_i.dim() != 2
        or table_i.shape != (table_f.shape[0], at.WI)
        or table_i.dtype != torch.int32
    ):
        raise ValueError(
            f"step: table_i is {list(table_i.shape)} {table_i.dtype}; {[table_f.shape[0], at.WI]} "
            "int32 is needed"
        )
    if len(f) > at.G or any(
        v.shape[1:] != x.shape[1:] or (f_index is None and v.shape != x.shape) for v in f
    ):
        raise ValueError(
            f"step: model outputs are {[list(v.shape) for v in f]} for a state of {list(x.shape)}; "
            f"up to {at.G} of that shape are accepted"
        )
    if row.dim() not in (1, 2) or row.shape[0] != x.shape[0]:
        raise ValueError(
            f"step: row has shape {list(row.shape)} for a batch of {x.shape[0]}; [B] or [B, "
            "groups] is accepted"
        )
    groups = row.shape[1] if row.dim() == 2 else 1
    if groups > 1 and (inner <= 0 or (x.shape[0] and x[0].numel() % (groups * inner))):
        raise ValueError(
            f"step: {groups} groups of inner={inner} do not divide a sample of {list(x.shape[1:])}"
        )
