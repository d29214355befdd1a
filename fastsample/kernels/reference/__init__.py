"""The kernels in plain torch: the definition every backend is held to, and what Inductor fuses in a
compiled loop.

Sums are formed left to right in the order written, each product and sum rounded on its own (no
fused multiply-add).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import noise as philox
from ..layout import BRANCHES, DU, DV, IDS, KNOWN_READS, READS_HI, READS_LO, Layout

BAD_ROW, BAD_PLACE, BAD_INDEX, NON_FINITE = 1, 2, 4, 8  # low byte of a sample's status word
MOMENTS_CHUNK, MOMENTS_LANES = 1024, 16


def _total(terms: Sequence[tuple], like: Tensor) -> Tensor:
    """sum of k*v over the terms (on, k, v) that are on: True or False (structure known), or a mask;
    what is off is never multiplied.
    """
    terms = [term for term in terms if term[0] is not False]
    if not terms:
        return torch.zeros_like(like)
    if terms[0][0] is True:
        total = terms[0][1] * terms[0][2]
        for _, k, v in terms[1:]:
            total = total + k * v
        return total
    total, started = torch.zeros_like(like), torch.zeros_like(terms[0][0])
    for on, k, v in terms:
        product = k * torch.where(
            on, v, 0
        )  # masked before the product: 0 * NaN is NaN, in the gradient too
        total = torch.where(on, torch.where(started, total + product, product), total)
        started = started | on
    return total


def _clamp(m: Tensor, bound: Tensor) -> Tensor:
    m = torch.where(m < -bound, -bound, m)
    return torch.where(m > bound, bound, m)


class _Rows:
    """The rows of a batch, their numbers as [B, 1, groups, 1] beside elements viewed as [B, outer,
    groups, inner].
    """

    def __init__(
        self,
        x: Tensor,
        table_f: Tensor,
        table_i: Tensor,
        row: Tensor,
        inner: int,
        structure: Sequence[int] | None,
    ):
        groups = row.shape[1] if row.dim() == 2 else 1
        batch, elements = x.shape[0], x[0].numel() if x.shape[0] else 0
        inner = inner if groups > 1 else elements
        self.shape = (
            batch,
            elements // (groups * inner) if inner and groups > 1 else 1,
            groups,
            inner,
        )
        self.row = row = row.view(batch, groups).long()
        self.inside = (row >= 0) & (row < table_f.shape[0])
        row = row if structure is not None else torch.where(self.inside, row, 0)
        self.numbers, self.words = table_f[row], table_i[row]  # [B, groups, WF], [B, groups, WI]
        self.structure = structure
        self.reads = (
            structure[0]
            if structure
            else self.words[..., READS_LO] | (self.words[..., READS_HI].long() << 24)
        )
        self.branches = structure[1] if structure else self.words[..., BRANCHES]
        self.known = structure[2] if structure else self.words[..., KNOWN_READS]
        self.writes = (
            [structure[3] >= 0, structure[4] >= 0]
            if structure
            else [self.view(self.words[..., d] >= 0) for d in (DU, DV)]
        )

    def view(self, per_group: Tensor) -> Tensor:
        return per_group[:, None, :, None]

    def sample(self, per_sample: Tensor, like: Tensor) -> Tensor:
        return per_sample.to(like.dtype).view(-1, 1, 1, 1)

    def __call__(self, column: int) -> Tensor:
        return self.view(self.numbers[..., column])

    def elements(self, value: Tensor) -> Tensor:
        return value.reshape(self.shape)

    def bit(self, mask: int | Tensor, k: int) -> bool | Tensor:
        return bool(mask >> k & 1) if isinstance(mask, int) else self.view((mask >> k & 1).bool())

    def id(self, k: int) -> Tensor:
        ids = self.words[..., IDS + k]  # [B, groups]
        if self.shape[2] == 1:
            return ids[:, 0]
        return ids[:, None, :, None].expand(self.shape).reshape(self.shape[0], -1)


def _branches(
    rows: _Rows,
    f: Sequence[Tensor],
    f_index: Tensor | None,
    at: Layout,
    like: Tensor,
    preview: bool,
) -> tuple[list, list, Tensor]:
    """Raw outputs f_g in the state dtype (None: not given), whether each is there (bool or
    [B,1,1,1]), and which groups have a bad index [B, groups].

    An index is looked at only where the row uses it: branch g enters an f or m that is needed, or
    operand f_g is read.
    """
    batch = rows.shape[0]
    values = [rows.elements(v.to(like.dtype)) for v in f] if f_index is None else [None] * len(f)
    bad = torch.zeros_like(rows.inside)
    if rows.structure:
        return values + [None] * (at.G - len(f)), [g < len(f) for g in range(at.G)], bad
    there = []
    needed = preview | (((rows.reads >> at.m) & 3) != 0)  # m or f is read
    for g in range(at.G):
        index = torch.arange(batch, device=like.device) if f_index is None else f_index[g].long()
        outputs = f[g].shape[0] if g < len(f) else 0
        inside = (index >= 0) & (index < outputs)
        if f_index is not None and outputs:
            values[g] = rows.elements(f[g][torch.where(inside, index, 0)].to(like.dtype))
        read = ((rows.reads >> (at.m + 2 + g)) & 1) != 0
        used = read | (needed & (((rows.branches >> g) & 1) != 0))
        bad = bad | ((index >= outputs)[:, None] & used) | ((index < 0)[:, None] & read)
        there.append(inside.view(-1, 1, 1, 1))
    return values + [None] * (at.G - len(f)), there, bad


def _both(a: bool | Tensor, b: bool | Tensor) -> bool | Tensor:
    return b if a is True else a if b is True else False if a is False or b is False else a & b


def _prediction(
    rows: _Rows, at: Layout, x: Tensor, f: list, there: list, scale, weights, bound
) -> tuple[Tensor, Tensor]:
    """f = sum_g w_g f_g and m = clip(w_0 p x + q f)."""

    def weight(g: int) -> Tensor:
        w = rows(at.U + g)
        for s in range(at.K if scale is not None else 0):
            w = w + rows.sample(scale[:, s], x) * rows(at.V + g * at.K + s)
        return w if weights is None else rows.sample(weights[:, 1 + g], x)

    fused = _total(
        [
            (_both(rows.bit(rows.branches, g), there[g]), weight(g), f[g])
            for g in range(at.G)
            if f[g] is not None
        ],
        x,
    )
    p = rows(at.p) if weights is None else rows.sample(weights[:, 0], x) * rows(at.p)
    m, called = p * x, bool(rows.branches) if rows.structure else rows.view(rows.branches != 0)
    if called is not False:
        sum_ = m + rows(at.p + 1) * fused
        m = sum_ if called is True else torch.where(called, sum_, m)
    if bound is not None:
        bound = rows.sample(bound, x)
        return fused, _clamp(m, bound) / bound
    clip = rows(at.p + 2)
    if rows.structure:
        return fused, _clamp(m, clip) if rows.structure[5] else m
    return fused, torch.where(clip > 0, _clamp(m, clip), m)


def normal(seed: Tensor, noise_id: Tensor, elements: int) -> Tensor:
    """The definition, and the op that gives its bits in a graph for the CPU, where Inductor takes
    longer over Philox than over all the rest of a loop, and under torch.jit.trace, which knows no
    tensor.view(dtype).
    """
    if noise_id.dim() == 1 and (
        torch.jit.is_tracing() or (torch.compiler.is_compiling() and seed.device.type == "cpu")
    ):
        return torch.ops.fastsample.normal(seed, noise_id, elements, None)
    return philox.normal(seed, noise_id, elements)


def _draws(rows: _Rows, at: Layout, x: Tensor, seed, noise_scale, noise, blend: bool) -> list:
    """n_l = normal(seed, id_l) * noise_scale, None where the row is known not to draw."""
    drawn = []
    # view: seeds held by a trace must not serve another batch size
    seed = torch.arange(x.shape[0], device=x.device) if seed is None else seed.view(x.shape[0])
    for k in range(at.L):
        n = None
        if (
            not rows.structure
            or rows.bit(rows.reads, at.n + k)
            or (blend and rows.bit(rows.known, 1 + k))
        ):
            n = (
                noise[k]
                if noise and noise[k] is not None
                else normal(seed, rows.id(k), x[0].numel() if x.shape[0] else 0)
            )
            n = rows.elements(n.to(x.dtype))
            n = n if noise_scale is None else n * rows.sample(noise_scale, x)
        drawn.append(n)
    return drawn


def _status(rows: _Rows, faults: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Words [B] int32 of faults (which groups [B, groups], bit): 0, or the bits in the low byte and
    above them the row number of the first group that has one.
    """
    any_fault = torch.stack([where for where, _ in faults]).any(0)
    row = rows.row.gather(1, any_fault.int().argmax(1, keepdim=True))[:, 0]
    bits = sum(where.any(1) * bit for where, bit in faults)
    return torch.where(bits != 0, bits | (row & 0xFFFFFF) << 8, 0).int()


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
    """One row for each sample of a batch; the formula and every argument are described at
    `fastsample.kernels.step`.
    """
    at, state = Layout(*dims), x.dtype
    structure = structure if f_index is None else None  # samples of an indexed batch may differ
    rows = _Rows(x, table_f, table_i, row, inner, structure)
    old, blend = rows.elements(x), mask is not None and known is not None
    f, there, bad = _branches(rows, f, f_index, at, old, preview)
    fused, m = _prediction(rows, at, old, f, there, scale, weights, bound)
    n = _draws(rows, at, old, seed, noise_scale, noise, blend)

    operands = [old, *(rows.elements(r) for r in slots), m, fused, *f, *n]
    read = [False if v is None else rows.bit(rows.reads, k) for k, v in enumerate(operands)]
    made = [o == 0 or rows.writes[o - 1] is not False for o in range(3)]
    out = [
        _total([(read[k], rows(o * at.W + k), v) for k, v in enumerate(operands)], old)
        if made[o]
        else None
        for o in range(3)
    ]
    if blend and (rows.known != 0 if structure else True):
        parts = [(rows.bit(rows.known, 0), rows(at.known), rows.elements(known.to(state)))]
        parts += [
            (rows.bit(rows.known, 1 + k), rows(at.known + 1 + k), v)
            for k, v in enumerate(n)
            if v is not None
        ]
        blended = out[0] + rows.elements(mask.to(state)) * (_total(parts, old) - out[0])
        out[0] = blended if structure else torch.where(rows.view(rows.known != 0), blended, out[0])

    good = (rows.inside & ~bad).all(1)
    if not structure:  # a bad index leaves the sample as it was
        keep = good.view(-1, 1, 1, 1)
        out = [
            torch.where(keep, out[0], old),
            *(torch.where(rows.writes[o] & keep, out[1 + o], 0) for o in range(2)),
        ]
    infinite = (~torch.isfinite(out[0])).transpose(1, 2).flatten(2).any(2) & good[:, None]
    status = _status(
        rows, ((~rows.inside, BAD_ROW), (bad & rows.inside, BAD_INDEX), (infinite, NON_FINITE))
    )
    model_input, x0 = (
        rows(at.c) * out[0],
        rows(at.preview) * old + rows(at.preview + 1) * m if preview else None,
    )
    if not structure:
        model_input, x0 = (
            torch.where(keep, model_input, 0),
            None if x0 is None else torch.where(keep, x0, 0),
        )
    model_input = model_input.to(model_dtype or state)
    return *(
        x.new_empty(0) if v is None else v.reshape(x.shape) for v in (*out, model_input, x0)
    ), status


def fill(out: Tensor, seed: Tensor, noise_id: int) -> None:
    """out[b] = normal(seed[b], noise_id), in place; out [B, ...] of the state dtype."""
    ids = torch.full_like(seed, noise_id)
    out.copy_(philox.normal(seed, ids, out[0].numel() if out.shape[0] else 0).view(out.shape))


def moments(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """dots[b,p,q] = sum_e a_p[b,e] b_q[b,e] and max_abs[b,p] = max_e |a_p[b,e]| in float64, by the
    fixed tree of `fastsample.kernels.moments`.
    """
    batch = a[0].shape[0]
    flat = [
        [v.reshape(batch, v[0].numel() if batch else 0).double() for v in group] for group in (a, b)
    ]
    dots = [[_tree_sum(p * q) for q in flat[1]] for p in flat[0]]
    peaks = [p.abs().amax(1) if p.shape[1] else p.new_zeros(batch) for p in flat[0]]
    none = flat[0][0].new_zeros(batch, 0)
    return torch.stack([torch.stack(row, 1) if row else none for row in dots], 1), torch.stack(
        peaks, 1
    )


def _tree_sum(terms: Tensor) -> Tensor:
    """Sum [B] of terms [B, N]: chunks of 1024 = 64 steps x 16 lanes; lanes summed in order, then
    halved; chunk sums halved as a power of two.
    """
    chunks = -(-terms.shape[1] // MOMENTS_CHUNK) or 1
    terms = torch.nn.functional.pad(terms, (0, chunks * MOMENTS_CHUNK - terms.shape[1]))
    steps = terms.view(
        terms.shape[0], chunks, MOMENTS_CHUNK // MOMENTS_LANES, MOMENTS_LANES
    ).unbind(2)
    total = steps[0]  # a sum starts at its first term: -0 stays -0
    for term in steps[1:]:
        total = total + term
    total = _halved(total)
    return _halved(torch.nn.functional.pad(total, (0, (1 << (chunks - 1).bit_length()) - chunks)))


def _halved(total: Tensor) -> Tensor:
    """Sum over the last dimension, a power of two: lower half + upper half until one is left."""
    while total.shape[-1] > 1:
        total = total[..., : total.shape[-1] // 2] + total[..., total.shape[-1] // 2 :]
    return total[..., 0]


def cost_matrix(U: Sequence[Tensor], c: Tensor, X: Tensor, band: Tensor, p: float = 2.0) -> Tensor:
    """C[b,i,j] = mean_d |sum_r U_r[b,i,d] c_r[i,j] - X[b,j,d]|^p for band[i,0] <= j < band[i,1],
    else +inf; float64 from float32 differences.
    """
    wide = torch.promote_types(X.dtype, torch.float32)
    U, X, factor, rows = [u.to(wide) for u in U], X.to(wide), c.to(wide), []
    for i in range(c.shape[1]):  # one source at a time: [B, J, D] is held, never [B, I, J, D]
        jump = U[0][:, i, None, :] * factor[0, i, :, None]
        for r in range(1, len(U)):
            jump = jump + U[r][:, i, None, :] * factor[r, i, :, None]
        gap = (jump - X).double().abs()
        rows.append((gap * gap if p == 2 else gap if p == 1 else gap**p).mean(-1))
    j = torch.arange(X.shape[1], device=X.device)
    inside = (j >= band[:, :1]) & (j < band[:, 1:])
    return torch.where(inside, torch.stack(rows, 1), torch.inf)


def cost_gather(U: Sequence[Tensor], c: Tensor, i_star: Tensor) -> Tensor:
    """Z[b,j] = sum_r U_r[b,i] c_r[i,j] with i = i_star[j] or i_star[b,j]; NaN where i is -1."""
    batch, targets = U[0].shape[0], c.shape[2]
    i = i_star.long().expand(batch, targets)
    safe = i.clamp(min=0)
    wide = torch.promote_types(U[0].dtype, torch.float32)
    factor = c.to(wide)[:, safe, torch.arange(targets, device=c.device)]  # [R, B, J]
    pick = safe[:, :, None].expand(batch, targets, U[0].shape[2])
    total = U[0].gather(1, pick).to(wide) * factor[0, :, :, None]
    for r in range(1, len(U)):
        total = total + U[r].gather(1, pick).to(wide) * factor[r, :, :, None]
    return torch.where((i >= 0)[:, :, None], total, torch.nan).to(U[0].dtype)
