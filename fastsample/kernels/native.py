"""The kernels in C++ (`fastsample._C`): same arguments and results as `reference`, bit-equal to it
for `step` and noise.

Tensors cross as raw addresses of contiguous memory, which this file makes sure of; `Run` binds its
own buffers once through `bind`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from .layout import DU, DV, Layout

try:
    from .. import _C

    MISSING = None
except ImportError as error:
    _C, MISSING = None, f"fastsample._C is not built ({error})"

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


_NOWHERE = torch.zeros(
    1, device="cpu"
)  # stands in for an empty tensor, whose address is 0 and would mean "absent"


def address(tensor: Tensor | None) -> int:
    """Where the elements of a contiguous tensor lie; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr() or _NOWHERE.data_ptr()


def _elements(x: Tensor) -> int:
    return x[0].numel() if x.shape[0] else 0


def fill(out: Tensor, seed: Tensor, noise_id: int) -> None:
    """out[b] = normal(seed[b], noise_id), in place; out [B, ...] float32 or float64, contiguous."""
    _C.noise_fill(
        out=out.data_ptr(),
        batch=out.shape[0],
        elements=_elements(out),
        id=noise_id,
        seed=seed.data_ptr(),
        dtype=DTYPES[out.dtype],
    )


def bind(
    dims: Sequence[int],
    x: Tensor,
    table_f: Tensor,
    table_i: Tensor,
    row: Tensor,
    model_dtype: torch.dtype,
    **tensors,
):
    """A `_C.Step` over buffers that must outlive it; keywords are tensors, lists of tensors or
    sizes under the names of `_C.Step`.
    """
    fixed = {
        name: address(t)
        if isinstance(t, Tensor)
        else [address(v) for v in t]
        if isinstance(t, list)
        else t
        for name, t in tensors.items()
    }
    return _C.Step(
        batch=x.shape[0],
        elements=_elements(x),
        table_rows=table_f.shape[0],
        table_f=address(table_f),
        table_i=address(table_i),
        x=address(x),
        row=address(row),
        state_dtype=DTYPES[x.dtype],
        model_dtype=DTYPES[model_dtype],
        **Layout(*dims)._asdict(),
        **fixed,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One row for each sample of a batch, into fresh memory; the C++ kernel works on the copies in
    place.
    """
    state, model = x.dtype, model_dtype or x.dtype
    fresh = lambda t: t.to(state).contiguous()
    new = x.clone(memory_format=torch.contiguous_format)
    pool = torch.stack([s.contiguous() for s in slots]) if slots else new.new_empty(0)
    row, table_f, table_i = row.int().contiguous(), table_f.contiguous(), table_i.contiguous()
    given = (
        model if all(v.dtype == model for v in f) else state
    )  # one model dtype in the kernel: widen outputs that differ from it
    f = [v.to(given).contiguous() for v in f]
    held = {
        "f_index": None if f_index is None else f_index.int().contiguous(),
        "scale": None if scale is None else fresh(scale),
        "seed": None if seed is None else seed.contiguous(),
        "noise_scale": None if noise_scale is None else fresh(noise_scale),
        "weights": None if weights is None else fresh(weights),
        "bound": None if bound is None else fresh(bound),
        "mask": None if mask is None else fresh(mask),
        "known": None if known is None else fresh(known),
        "noise": [fresh(n) for n in noise],
        "f": f,
        "slots": pool,
        "model_input": torch.zeros_like(new, dtype=given),
        "preview": torch.zeros_like(new) if preview else None,
        "status": x.new_zeros(x.shape[0], dtype=torch.int32),
    }
    groups = row.shape[1] if row.dim() == 2 else 1
    sizes = {
        "outputs": f[0].shape[0] if f else x.shape[0],
        "groups": groups,
        "inner": inner if groups > 1 else 0,
    }
    kernel = bind(
        dims,
        new,
        table_f,
        table_i,
        row,
        given,
        **sizes,
        **{k: v for k, v in held.items() if v is not None},
    )
    kernel(address(row), *(address(v) for v in f))
    u, v = _written(
        new, pool, table_i, row, held["status"], inner, structure if f_index is None else None
    )
    return (
        new,
        u,
        v,
        held["model_input"].to(model),
        held["preview"] if preview else new.new_empty(0),
        held["status"],
    )


def _written(
    x: Tensor, pool: Tensor, table_i: Tensor, row: Tensor, status: Tensor, inner: int, structure
) -> list[Tensor]:
    """u and v as the slots now hold them: nothing where the structure says unwritten, +0 for
    samples that did not write.
    """
    if structure is not None:
        return [pool[d] if d >= 0 else x.new_empty(0) for d in structure[3:5]]
    if not pool.numel():
        return [torch.zeros_like(x), torch.zeros_like(x)]
    good = (status & 7) == 0
    shape = (
        (x.shape[0], -1, row.shape[1], inner)
        if row.dim() == 2 and row.shape[1] > 1
        else (x.shape[0], 1, 1, -1)
    )
    words = table_i[torch.where(good.view(-1, *[1] * (row.dim() - 1)), row, 0).long()].view(
        x.shape[0], 1, shape[2], 1, -1
    )
    slots, out = pool.view(pool.shape[0], *x.view(shape).shape), []
    for d in (DU, DV):
        slot = words[..., d].long()
        value = torch.gather(slots, 0, slot.clamp(min=0).expand(slots.shape[1:])[None])[0]
        out.append(torch.where((slot >= 0) & good.view(-1, 1, 1, 1), value, 0).view(x.shape))
    return out


def _common(*groups: Sequence[Tensor]) -> tuple[torch.dtype, list[list[Tensor]]]:
    """The smallest dtype that holds every tensor exactly, and the tensors in it, contiguous."""
    dtype = reduce(torch.promote_types, (t.dtype for group in groups for t in group))
    return dtype, [[t.to(dtype).contiguous() for t in group] for group in groups]


def moments(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    dtype, (a, b) = _common(a, b)
    batch = a[0].shape[0]
    dots, peaks = (
        a[0].new_zeros(batch, len(a), len(b), dtype=torch.float64),
        a[0].new_zeros(batch, len(a), dtype=torch.float64),
    )
    _C.moments(
        a=[t.data_ptr() for t in a],
        b=[t.data_ptr() for t in b],
        batch=batch,
        elements=_elements(a[0]),
        dots=dots.data_ptr(),
        max_abs=peaks.data_ptr(),
        dtype=DTYPES[dtype],
    )
    return dots, peaks


def cost_matrix(U: Sequence[Tensor], c: Tensor, X: Tensor, band: Tensor, p: float = 2.0) -> Tensor:
    dtype, (U, (X,)) = _common(U, [X])
    c, band = c.double().contiguous(), band.int().contiguous()
    batch, I, D = U[0].shape  # noqa: E741
    out = X.new_empty(batch, I, X.shape[1], dtype=torch.float64)
    _C.cost_matrix(
        U=[u.data_ptr() for u in U],
        c=c.data_ptr(),
        X=X.data_ptr(),
        band=band.data_ptr(),
        out=out.data_ptr(),
        batch=batch,
        I=I,
        J=X.shape[1],
        D=D,
        p=p,
        dtype=DTYPES[dtype],
    )
    return out


def cost_gather(U: Sequence[Tensor], c: Tensor, i_star: Tensor) -> Tensor:
    dtype, (U,) = _common(U)
    c, i_star = c.double().contiguous(), i_star.int().contiguous()
    batch, I, D = U[0].shape  # noqa: E741
    J = c.shape[2]
    out = U[0].new_empty(batch, J, D, dtype=dtype)
    _C.cost_gather(
        U=[u.data_ptr() for u in U],
        c=c.data_ptr(),
        i_star=i_star.data_ptr(),
        i_star_batch_stride=J if i_star.dim() == 2 else 0,
        out=out.data_ptr(),
        batch=batch,
        I=I,
        J=J,
        D=D,
        dtype=DTYPES[dtype],
    )
    return out
