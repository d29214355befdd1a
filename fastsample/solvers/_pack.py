"""From rows in symbols to the arrays of a Plan: a slot for every kept value, a column for every
operand.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..model import Model, to_kind
from ..plan import PlanError
from ..plan.row import Layout, blank

if TYPE_CHECKING:
    from ._build import Lin

INITIAL_NOISE = 0  # id of the noise a run starts from; makers draw ids from 1


@dataclass(slots=True)
class Row:
    """What one row of a Plan does, over operands by name."""

    out: dict[str, Lin]  # "x", first, and the names of kept values
    target: tuple[float, float]  # alpha, sigma of x'
    point: tuple[float, float] = (0.0, 1.0)  # alpha, sigma where the model is asked
    call: int = -1
    t: float = 0.0  # when the model is asked
    to: float | tuple[float, float] = 0.0  # where its x' stands: a time, or (alpha, sigma)
    scalars: tuple[float, ...] = ()  # what it is told beside its time
    U: Sequence[float] = (1.0,)  # weights of the branches that enter f
    V: Sequence[Sequence[float]] = ()
    reads: Collection = ()  # operands that are read whatever their coefficients
    spares: Collection[str] = ()  # kept values that stay until this row, which need not read them
    # of `allocate`: the operands read, and the slots written
    operands: set = field(init=False)
    slots: dict[str, int] = field(init=False)

    def named(self, kind: str) -> set:
        """Of the operands read, names of kept values ("r") or ids of noises ("n")."""
        return {operand[1] for operand in self.operands if operand[0] == kind}


def allocate(rows: list[Row]) -> int:
    """Give every kept value a slot while it is still to be read, drop those nobody reads; returns
    the number of slots.
    """
    live: set[str] = set()
    after: list[set[str]] = []
    for row in reversed(rows):
        row.out = {k: v for k, v in row.out.items() if k == "x" or k in live}
        row.operands = {*row.reads}.union(*row.out.values())
        after.append(live)
        live = live.difference(row.out) | row.named("r").union(row.spares)
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


def pack(
    rows: list[Row], models: Sequence[Model], stored: str, clip: float, inpaint: bool
) -> dict[str, np.ndarray]:
    """The arrays of the Plan of these rows and of a last one that holds."""
    S, end = allocate(rows), rows[-1]
    hold = Row({"x": {"x": 1.0}}, end.target, end.target, scalars=end.scalars)
    hold.operands, hold.slots = {"x"}, {}
    read = set().union(*(row.operands for row in rows))
    draws = inpaint or any(operand[0] == "n" for operand in read)
    ids = [sorted(_noises(row, inpaint)) if draws else [] for row in rows]
    branches = (1 + operand[1] for operand in read - {"f"} if operand[0] == "f")
    G = max(*(len(row.U) for row in rows), *branches)
    K = max((len(scales) for row in rows for scales in row.V), default=0)
    E = len(models[0].told) + len(end.scalars)
    rows = [*rows, hold]
    layout = Layout(S, G, max(map(len, ids)), K, E)
    arrays = blank(layout, len(rows))
    _tell(arrays, rows, models, stored, clip)
    arrays["U"][:] = [
        row.U if len(row.U) == G else [*row.U, *[0.0] * (G - len(row.U))] for row in rows
    ]
    if G > 1:
        arrays["U"][[0, -1]] = 0.0
    arrays["branches"][1:-1] = [(1 << len(row.U)) - 1 for row in rows[1:-1]]
    for i, row in enumerate(rows if K else ()):
        for g, scales in enumerate(row.V):
            arrays["V"][i, g, : len(scales)] = scales
    for i, names in enumerate(ids):
        if names:
            arrays["ids"][i, : len(names)] = names
        if inpaint:
            _aim(arrays, i, rows[i], names)
    _update(arrays, layout, rows, [*ids, []])
    return arrays


def _tell(
    arrays: dict[str, np.ndarray],
    rows: list[Row],
    models: Sequence[Model],
    stored: str,
    clip: float,
) -> None:
    """The levels, what the models are told, and what their outputs are as the stored kind: for all
    rows of a model at once, which takes little longer than for a single row.
    """
    arrays["call"][:] = call = np.array([row.call for row in rows])
    arrays["alpha"][:], arrays["sigma"][:] = levels = np.array([row.point for row in rows]).T
    t, c = np.array([row.t for row in rows]), arrays["c"]
    c[:] = 1.0
    if rows[-1].scalars:
        own = len(models[0].told)
        arrays["t"][:-1, own:] = [row.scalars for row in rows[1:]]
    asking = slice(1, -1)  # every row but the first and the last
    for k, model in enumerate(models):
        at = np.flatnonzero(call == k) if len(models) > 1 else np.arange(len(rows))[asking]
        if len(at):
            p, q = to_kind(stored, model.prediction, *levels[:, at], model.sigma_data)
            arrays["p"][at], arrays["q"][at] = p, q
            # a row keeps what the next one's model is told
            arrays["t"][at - 1, 0], c[at - 1] = model.times(t[at]), model.scales(t[at])
            if len(model.told) > 1:
                arrays["t"][at - 1, 1] = model.scalars(t[at], _ends(rows, at, model))[:, 1]
    arrays["clip"][asking] = clip
    with np.errstate(divide="ignore", invalid="ignore"):
        dx, dm = shown(stored, *levels[:, asking])
    arrays["preview"][asking, 0], arrays["preview"][asking, 1] = dx, dm
    arrays["preview"][-1, 0] = 1.0
    arrays["t"][-2:] = arrays["t"][-3:][0]  # the last row's, where no model is asked any more


def _ends(rows: list[Row], at: np.ndarray, model: Model) -> np.ndarray:
    """The times at which x' of these rows stands."""
    ends = [rows[i].to for i in at]
    pairs = np.array([end for end in ends if isinstance(end, tuple)]).reshape(-1, 2)
    with np.errstate(divide="ignore"):
        times = iter(model.schedule.time(np.log(pairs[:, 0]) - np.log(pairs[:, 1])))
    return np.array([next(times) if isinstance(end, tuple) else end for end in ends])


def shown(stored: str, a: np.ndarray, s: np.ndarray) -> tuple:
    """(dx, dm) with x0 = dx x + dm m."""
    if stored == "x0":
        return 0.0, 1.0
    if stored == "flow":
        return 1.0 / (a + s), -s / (a + s)
    return 1.0 / a, -s / a


def _update(
    arrays: dict[str, np.ndarray], layout: Layout, rows: list[Row], ids: list[list[int]]
) -> None:
    """M, reads and dst: the values a row writes, over its operands, and the slots it writes them
    to.
    """
    column = {"x": 0, "m": layout.m, "f": layout.f}
    column |= {("f", g): layout.branch(g) for g in range(layout.G)}
    slots = [layout.slot(s) for s in range(layout.S)]
    places, numbers, reads, dst = [], [], [], []
    at, W, drawn = 0, layout.W, layout.noise(0)
    for row, names in zip(rows, ids, strict=True):
        for k, name in enumerate(names, drawn):
            column["n", name] = k
        for line, value in enumerate(row.out.values()):
            begin = at + line * W
            places += [begin + column[operand] for operand in value]
            numbers += value.values()
        at += 3 * W
        reads.append(sum([1 << column[operand] for operand in row.operands]))
        dst.append([*row.slots.values(), -1, -1][:2])
        for name, slot in row.slots.items():
            column["r", name] = slots[slot]
    arrays["M"].reshape(-1)[places] = numbers
    arrays["reads"][:], arrays["dst"][:] = reads, dst


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
    """Ids of the noises a row draws, that of the known image among them."""
    return row.named("n") | ({INITIAL_NOISE} if inpaint and row.target[1] else set())
