"""From rows in symbols to the arrays of a Plan: a slot for every kept value, a column for every
operand.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..plan import PlanError
from ..plan.row import Layout, blank

if TYPE_CHECKING:
    from ._build import Lin

INITIAL_NOISE = 0  # id of the noise a run starts from; makers draw ids from 1


@dataclass
class Row:
    """What one row of a Plan does, over operands by name."""

    out: dict[str, Lin]  # "x" and the names of kept values
    call: int = -1
    point: tuple[float, float] = (0.0, 1.0)  # alpha, sigma where the model is asked
    told: tuple[float, ...] = (0.0,)  # the model's scalars, its time first
    scale: float = 1.0
    p: float = 0.0
    q: float = 0.0
    clip: float = 0.0
    U: Sequence[float] = (1.0,)  # weights of the branches that enter f
    V: Sequence[Sequence[float]] = ()
    reads: Collection = ()  # operands that are read whatever their coefficients
    preview: tuple[float, float] = (0.0, 0.0)
    target: tuple[float, float] = (1.0, 0.0)  # alpha, sigma of x'
    slots: dict[str, int] = field(default_factory=dict)

    def indices(self, kind: str) -> set:
        """Of the operands read: names of kept values ("r"), ids of noises ("n"), branches ("f")."""
        read = (operand for value in (*self.out.values(), self.reads) for operand in value)
        return {name[1] for name in read if name.__class__ is tuple and name[0] == kind}


def allocate(rows: list[Row]) -> int:
    """Give every kept value a slot while it is still to be read, drop those nobody reads; returns
    the number of slots.
    """
    live: set[str] = set()
    after: list[set[str]] = []
    for row in reversed(rows):
        row.out = {k: v for k, v in row.out.items() if k == "x" or k in live}
        after.append(set(live))
        live -= set(row.out)
        live |= row.indices("r")
    if live:
        raise PlanError(f"rows read {sorted(live)} before any row kept it")
    held: dict[str, int] = {}
    free: list[int] = []
    size = 0
    for row, needed in zip(rows, reversed(after), strict=True):
        for name in [k for k in held if k not in needed or k in row.out]:
            free.append(held.pop(name))
        row.slots = {}
        for name in row.out:
            if name != "x":
                free.sort()
                held[name] = row.slots[name] = free.pop(0) if free else size
                size = max(size, held[name] + 1)
        if len(row.slots) > 2:
            raise PlanError(f"a row keeps {sorted(row.slots)}; at most two values can be written")
    return size


def pack(rows: list[Row], S: int, inpaint: bool) -> dict[str, np.ndarray]:
    """The arrays of the Plan of these rows and of a last one that holds; S: the slots that
    `allocate` gave out.
    """
    end = rows[-1]
    hold = Row({"x": {"x": 1.0}}, point=end.target, told=end.told, preview=(1.0, 0.0))
    ids = [*(sorted(_noises(row, inpaint)) for row in rows), []]
    rows = [*rows, hold]
    layout = Layout(
        S,
        G=max(max(len(row.U), *(1 + g for g in row.indices("f")), 1) for row in rows),
        L=max(map(len, ids)),
        K=max((len(scales) for row in rows for scales in row.V), default=0),
        E=max(len(row.told) for row in rows),
    )
    arrays = blank(layout, len(rows))
    for name in ("p", "q", "clip", "preview", "call"):
        arrays[name][:] = [getattr(row, name) for row in rows]
    arrays["alpha"][:], arrays["sigma"][:] = np.transpose([row.point for row in rows])
    told = [*rows[1:], hold]  # a row keeps what the next one's model is told
    arrays["c"][:], arrays["t"][:] = [row.scale for row in told], [row.told for row in told]
    for i, row in enumerate(rows):
        if ids[i]:
            arrays["ids"][i, : len(ids[i])] = ids[i]
        if row.call >= 0:
            arrays["branches"][i] = (1 << len(row.U)) - 1
        if row.call >= 0 or layout.G == 1:
            arrays["U"][i, : len(row.U)] = row.U
        for g, scales in enumerate(row.V):
            arrays["V"][i, g, : len(scales)] = scales
        if inpaint and row is not hold:
            _aim(arrays, i, row, ids[i])
    _update(arrays, layout, rows, ids)
    return arrays


def _update(
    arrays: dict[str, np.ndarray], layout: Layout, rows: list[Row], ids: list[list[int]]
) -> None:
    """M, reads and dst: the values a row writes, over its operands, and the slots it writes them
    to.
    """
    M, reads, dst = arrays["M"], arrays["reads"], arrays["dst"]
    column = {"x": 0, "m": layout.m, "f": layout.f}
    column |= {("f", g): layout.branch(g) for g in range(layout.G)}
    for i, row in enumerate(rows):
        column |= {("n", name): layout.noise(k) for k, name in enumerate(ids[i])}
        kept, read = [name for name in row.out if name != "x"], set(row.reads)
        for o, name in enumerate(["x", *kept]):
            for operand, number in row.out[name].items():
                M[i, o, column[operand]] += number
            read |= row.out[name].keys()
        reads[i] = sum(1 << column[operand] for operand in read)
        dst[i, : len(kept)] = [row.slots[name] for name in kept]
        column |= {("r", name): layout.slot(slot) for name, slot in row.slots.items()}


def _aim(arrays: dict[str, np.ndarray], i: int, row: Row, ids: list[int]) -> None:
    """known and known_reads of a row: the known image at the level of x', with the noise the run
    started from.
    """
    level, noise = row.target
    arrays["known"][i, 0], arrays["known_reads"][i] = level, 1
    if noise:
        at = 1 + ids.index(INITIAL_NOISE)
        arrays["known"][i, at] = noise
        arrays["known_reads"][i] |= 1 << at


def _noises(row: Row, inpaint: bool) -> set[int]:
    return row.indices("n") | ({INITIAL_NOISE} if inpaint and row.target[1] else set())
