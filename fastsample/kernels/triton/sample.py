"""What a step looks up and checks for one sample before it touches an element, and how it says what
was wrong. `held`, `size` and `at` are `Held`, `Sizes` and `Places` of the step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...plan.row import READS_SPLIT
from ..reference import step as definition

BAD_ROW, BAD_PLACE, BAD_BRANCH, NOT_FINITE = (
    tl.constexpr(getattr(definition, name))
    for name in ("BAD_ROW", "BAD_PLACE", "BAD_BRANCH", "NOT_FINITE")
)
SPLIT = tl.constexpr(READS_SPLIT)
VECTOR = tl.constexpr(-(2**31))  # in place of a row number: each sample's own


@triton.jit
def bit(words, k):
    return ((words >> k) & 1) != 0


@triton.jit
def words_of(held, row, at: tl.constexpr):
    """reads, branches and known_reads of rows that are in the table."""
    words = held.table_i + row.to(tl.int64) * at.WI
    low, high = tl.load(words + at.reads), tl.load(words + at.reads + 1)
    reads = low.to(tl.int64) | (high.to(tl.int64) << SPLIT)
    return reads, tl.load(words + at.branches), tl.load(words + at.known_reads)


@triton.jit
def row_of(held, number, at):
    """The rows standing there in the row vector; the number, where there is one."""
    row = number + at.to(tl.int32) * 0
    if held.row is not None and number == VECTOR:
        row = tl.load(held.row + at)
    return row


@triton.jit
def branch_row(held, b, g, batch):
    """Where in the model's outputs of branch g that of sample b stands; -1: nowhere."""
    taken = b
    if held.f_index is not None:
        taken = tl.load(held.f_index + g * batch + b).to(tl.int64)
    return taken


@triton.jit
def fault_of(held, row, rows, b, there, outputs, batch, at: tl.constexpr):
    """What forbids these rows, one or several, to sample b."""
    S: tl.constexpr = at.S
    G: tl.constexpr = at.G
    good = (row >= 0) & (row < rows)
    safe = tl.where(good, row, 0)
    reads, branches, _ = words_of(held, safe, at)
    written = held.table_i + safe.to(tl.int64) * at.WI + at.dst
    good = good & (tl.load(written) < S) & (tl.load(written + 1) < S)
    mixes = ((reads >> (1 + S)) & 3) != 0
    if held.preview is not None:
        mixes = mixes | good
    bad = good & False
    for g in tl.static_range(G):
        taken = branch_row(held, b, g, batch)
        present = bit(there, g) & (taken >= 0) & (taken < outputs)
        direct = bit(reads, 3 + S + g)
        used = direct | (mixes & bit(branches, g))
        bad = bad | (used & (direct | (taken != -1)) & (present == 0))
    return tl.where(good, tl.where(bad, BAD_BRANCH, 0), BAD_ROW)


@triton.jit
def sample_faults(
    held, number, rows, b, there, outputs, size, at: tl.constexpr, GROUPED: tl.constexpr
):
    """What forbids sample b to run, of all its groups' rows; and the row of the first such."""
    row = row_of(held, number, b * size.groups)
    faults = fault_of(held, row, rows, b, there, outputs, size.batch, at)
    if GROUPED:
        group = tl.arange(0, 128)
        guilty = size.groups
        for start in range(0, size.groups, 128):
            g = start + group
            each = row_of(held, number, b * size.groups + tl.minimum(g, size.groups - 1))
            found = fault_of(held, each, rows, b, there, outputs, size.batch, at)
            guilty = tl.minimum(guilty, tl.min(tl.where(found != 0, g, size.groups), 0))
            for k in tl.static_range(3):
                faults = faults | (tl.max(found & (1 << k), 0))
        if guilty < size.groups:
            row = row_of(held, number, b * size.groups + guilty)
    return faults, row


@triton.jit
def weight_of(held, r, b, g, at: tl.constexpr):
    """w_g of a row: U_g + sum_k scale_k V_gk, or the sample's own."""
    K: tl.constexpr = at.K
    if held.weights is not None:
        w = tl.load(held.weights + b * (1 + at.G) + 1 + g)
    else:
        w = tl.load(r + at.U + g)
        if held.scale is not None:
            for k in tl.static_range(K):
                w = w + tl.load(held.scale + b * K + k) * tl.load(r + at.V + g * K + k)
    return w


@triton.jit
def tell(held, b, fault, row):
    """Writes a sample's status word, unless it shows a fault already."""
    if (tl.load(held.status + b) & 255) == 0:
        tl.store(held.status + b, ((row & 0xFFFFFF) << 8) | fault)


@triton.jit
def judged(held, number, new, inside, b, g, programs, size, GROUPED: tl.constexpr):
    """Where x' is not finite and the sample's word shows no fault yet: the word of its first such
    group, which the program that is done last writes.
    """
    group = b * size.groups + g
    bad = tl.max((inside & ((new - new) != 0.0)).to(tl.int32), 0)
    if GROUPED:
        if bad != 0:
            tl.atomic_min(held.first + b, g)
        if tl.atomic_add(held.done + b, 1) == programs - 1:
            least = tl.atomic_xchg(held.first + b, size.groups)
            tl.atomic_xchg(held.done + b, 0)
            bad = (least < size.groups).to(tl.int32)
            group = b * size.groups + least
        else:
            bad = 0
    if bad != 0:
        tell(held, b, NOT_FINITE, row_of(held, number, group))
