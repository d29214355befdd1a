"""What makes a Plan sound: shapes, finite numbers, words in range, and no slot or noise read that
nothing wrote or named.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from .row import CAPS, FIELDS, FLOATS, INTS, Layout, PlanError, shapes

if TYPE_CHECKING:
    from .plan import Plan

NAMES = [field.name for field in FIELDS]
arrays_of = attrgetter(*NAMES)
STORED = ("x0", "eps", "flow", "d")  # kinds of the prediction m


def check(plan: Plan) -> None:
    """PlanError, one sentence, for the first thing that is unsound."""
    _check_shapes(plan)
    _check_values(plan)
    _check_reads(plan)


def _check_shapes(plan: Plan) -> None:
    three, two = (plan.M, plan.V), (plan.U, plan.ids, plan.t)
    if any(a.ndim != 3 for a in three) or any(a.ndim != 2 for a in two):
        raise PlanError(
            "plan: M and V must have 3 dimensions and U, ids, t 2; build plans with "
            "fastsample.solvers"
        )
    for name, size in plan.dims.items():
        low = {"R": 2, "G": 1, "E": 1}.get(name, 0)
        if not low <= size <= CAPS[name]:
            raise PlanError(f"plan: {name}={size}; {low} to {CAPS[name]} is accepted")
    rows, wanted = plan.rows, shapes(plan.layout)
    for name, array, shape in zip(NAMES, arrays_of(plan), wanted, strict=True):
        if array.shape[:1] != (rows,) or array.shape[1:] != shape:
            raise PlanError(
                f"plan: {name} has shape {list(array.shape)}; {[rows, *shape]} is needed"
            )
    check_note(plan.note)


def check_note(note: object) -> None:
    if not isinstance(note, dict):
        raise PlanError(f"plan: the note is a {type(note).__name__}; a dict is needed")
    if note.get("stored", "x0") not in list(STORED):
        raise PlanError(
            f"plan: the note's stored kind is {note['stored']!r}; {', '.join(STORED)} are accepted"
        )


def _check_values(plan: Plan) -> None:
    if not np.isfinite(
        np.concatenate([getattr(plan, field.name).ravel() for field in FLOATS])
    ).all():
        for field in FLOATS:
            array = getattr(plan, field.name)
            for where in map(tuple, np.argwhere(~np.isfinite(array))[:1].tolist()):
                raise PlanError(
                    f"plan: {field.name}{list(where)} is {array[where]}; every number must be "
                    "finite"
                )
    words = np.concatenate([getattr(plan, f.name).reshape(plan.rows, -1) for f in INTS], axis=1)
    low, high, names = _ranges(plan.layout)
    out = (words < low) | (words > high)
    if out.any():
        row, k = np.argwhere(out)[0]
        raise PlanError(
            f"plan: {names[k]} holds {words[row, k]}; {low[k]} to {high[k]} is accepted"
        )
    negative = min(plan.clip.min(), plan.alpha.min(), plan.sigma.min()) < 0.0
    if negative or (plan.alpha + plan.sigma).min() <= 0.0:
        raise PlanError(
            "plan: clip, alpha or sigma is negative, or alpha = sigma = 0; levels and bounds are 0 "
            "or more"
        )


@lru_cache(maxsize=256)
def _ranges(at: Layout) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(least, largest, name) of every word of a row."""
    ends = [(*field.within(at), field.name) for field in INTS for _ in range(prod(at.shape(field)))]
    low, high, names = zip(*ends, strict=True)
    return np.array(low), np.array(high), list(names)


def _check_reads(plan: Plan) -> None:
    at, (du, dv) = plan.layout, plan.dst.T
    # a bit for each slot; -1, no slot, is none
    writes = (1 << (du + 1) >> 1) | (1 << (dv + 1) >> 1)
    written = np.bitwise_or.accumulate(np.append(0, writes[:-1]))
    unwritten = plan.reads >> at.slot(0) & (1 << at.S) - 1 & ~written
    for i in np.flatnonzero(unwritten)[:1].tolist():
        last = int(unwritten[i]).bit_length() - 1
        raise PlanError(f"plan: row {i} reads slot {last} that no earlier row wrote")
    for i in np.flatnonzero((du == dv) & (du >= 0))[:1].tolist():
        raise PlanError(f"plan: row {i} writes slot {du[i]} twice; u and v need slots of their own")
    drawn = plan.reads >> at.noise(0) | plan.known_reads >> 1
    nameless = (plan.ids < 0) & (drawn[:, None] >> np.arange(at.L) & 1 == 1)
    for i in np.flatnonzero(nameless.any(1))[:1].tolist():
        raise PlanError(
            f"plan: row {i} reads a noise that has no id; give it an id of 0 to 2**32-1"
        )
    if plan.call[0] >= 0 or plan.call[-1] >= 0:
        raise PlanError(
            "plan: the first and the last row call no model; row 0 starts the run and the last row "
            "holds"
        )
    idle = plan.reads[-1] == 1 and plan.M[-1, 0, 0] == 1.0 and plan.known_reads[-1] == 0
    if not idle or plan.dst[-1].max() >= 0:
        raise PlanError("plan: the last row must hold (x' = x, nothing written)")
