"""From rows in symbols to the arrays of a Plan: a slot for every kept value, a column for every
operand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..plan import PlanError

if TYPE_CHECKING:
    from ._build import Lin

INITIAL_NOISE = 0  # id of the noise a run starts from; makers draw ids from 1


@dataclass
class Row:
    """What one row of a Plan does, over operands by name."""

    out: dict[str, Lin]  # "x" and the names of kept values
    call: int = -1
    point: tuple[float, float] = (0.0, 1.0)  # alpha, sigma where the model is asked
    time: float = 0.0
    scale: float = 1.0
    p: float = 0.0
    q: float = 0.0
    clip: float = 0.0
    preview: tuple[float, float] = (0.0, 0.0)
    target: tuple[float, float] = (1.0, 0.0)  # alpha, sigma of x'
    slots: dict[str, int] = field(default_factory=dict)


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
        live |= {k[1] for v in row.out.values() for k in v if isinstance(k, tuple) and k[0] == "r"}
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


def pack(rows: list[Row], S: int, inpaint: bool) -> dict[str, object]:
    """The arrays of the Plan of these rows and of a last one that holds; S: the slots that
    `allocate` gave out.
    """
    end = rows[-1]
    hold = Row({"x": {"x": 1.0}}, point=end.target, time=end.time, preview=(1.0, 0.0))
    ids = [sorted(_noises(row, inpaint)) for row in rows]
    L = max(map(len, ids))
    known, known_reads = _targets(rows, ids, L, inpaint)
    rows, ids = [*rows, hold], [*ids, []]
    M, reads, dst = _updates(rows, ids, S, L)
    after = [*rows[1:], hold]  # a row keeps what the next one's model is told
    return {
        **{name: [getattr(row, name) for row in rows] for name in ("p", "q", "clip", "call")},
        **{"M": M, "reads": reads, "dst": dst, "known": known, "known_reads": known_reads},
        "U": np.ones((len(rows), 1)),
        "V": np.zeros((len(rows), 1, 0)),
        "c": [row.scale for row in after],
        "t": [[row.time] for row in after],
        "preview": [row.preview for row in rows],
        "alpha": [row.point[0] for row in rows],
        "sigma": [row.point[1] for row in rows],
        "branches": [int(row.call >= 0) for row in rows],
        "ids": [noise + [-1] * (L - len(noise)) for noise in ids],
    }


def _updates(rows: list[Row], ids: list[list[int]], S: int, L: int) -> tuple[np.ndarray, ...]:
    """M, reads and dst: the values a row writes, over the columns x, r_1..r_S, m, f, f_1 and
    n_1..n_L, and the slots it writes them to.
    """
    M, reads = np.zeros((len(rows), 3, 4 + S + L)), np.zeros(len(rows), np.int64)
    dst = np.full((len(rows), 2), -1)
    column = {"x": 0, "m": 1 + S, "f": 2 + S, ("f", 0): 3 + S}
    for i, row in enumerate(rows):
        column |= {("n", k): 4 + S + at for at, k in enumerate(ids[i])}
        kept = [name for name in row.out if name != "x"]
        for o, name in enumerate(["x", *kept]):
            for operand, number in row.out[name].items():
                M[i, o, column[operand]] += number
                reads[i] |= 1 << column[operand]
        dst[i, : len(kept)] = [row.slots[name] for name in kept]
        column |= {("r", name): 1 + slot for name, slot in row.slots.items()}
    return M, reads, dst


def _targets(
    rows: list[Row], ids: list[list[int]], L: int, inpaint: bool
) -> tuple[np.ndarray, np.ndarray]:
    """known and known_reads: the known image at the level of x', with the noise the run started
    from; nothing in the row that holds, and in no row of a plan without masks.
    """
    known, reads = np.zeros((len(rows) + 1, 1 + L)), np.zeros(len(rows) + 1, np.int64)
    for i, row in enumerate(rows if inpaint else ()):
        known[i, 0], reads[i] = row.target[0], 1
        if row.target[1]:
            at = 1 + ids[i].index(INITIAL_NOISE)
            known[i, at] = row.target[1]
            reads[i] |= 1 << at
    return known, reads


def _noises(row: Row, inpaint: bool) -> set[int]:
    ids = {k[1] for v in row.out.values() for k in v if isinstance(k, tuple) and k[0] == "n"}
    return ids | ({INITIAL_NOISE} if inpaint and row.target[1] else set())
