"""What makes a Plan sound: shapes, finite numbers, words in range, and no slot or noise read that
nothing wrote or named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .row import CAPS, FIELDS, FLOATS, INTS, PlanError

if TYPE_CHECKING:
    from .plan import Plan

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
    rows, at = plan.rows, plan.layout
    for field in FIELDS:
        shape, want = getattr(plan, field.name).shape, (rows, *at.shape(field))
        if shape != want:
            raise PlanError(f"plan: {field.name} has shape {list(shape)}; {list(want)} is needed")
    check_note(plan.note)


def check_note(note: object) -> None:
    if not isinstance(note, dict):
        raise PlanError(f"plan: the note is a {type(note).__name__}; a dict is needed")
    if note.get("stored", "x0") not in list(STORED):
        raise PlanError(
            f"plan: the note's stored kind is {note['stored']!r}; {', '.join(STORED)} are accepted"
        )


def _check_values(plan: Plan) -> None:
    for field in FLOATS:
        array = getattr(plan, field.name)
        if not np.isfinite(array).all():
            where = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
            raise PlanError(
                f"plan: {field.name}{list(where)} is {array[where]}; every number must be finite"
            )
    for field in INTS:
        array, (low, high) = getattr(plan, field.name), field.within(plan.layout)
        bad = array[(array < low) | (array > high)]
        if bad.size:
            raise PlanError(f"plan: {field.name} holds {bad[0]}; {low} to {high} is accepted")
    negative = any((array < 0).any() for array in (plan.clip, plan.alpha, plan.sigma))
    if negative or (plan.alpha + plan.sigma <= 0).any():
        raise PlanError(
            "plan: clip, alpha or sigma is negative, or alpha = sigma = 0; levels and bounds are 0 "
            "or more"
        )


def _check_reads(plan: Plan) -> None:
    at = plan.layout
    slots, written = (1 << at.S) - 1, 0  # a bit for each slot
    for i, row in enumerate(plan.program.rows):
        unwritten = row.reads >> at.slot(0) & slots & ~written
        if unwritten:
            last = unwritten.bit_length() - 1
            raise PlanError(f"plan: row {i} reads slot {last} that no earlier row wrote")
        if row.du == row.dv >= 0:
            raise PlanError(
                f"plan: row {i} writes slot {row.du} twice; u and v need slots of their own"
            )
        draws = row.draws(at, masked=True) if at.L else ()
        if any(drawn and name < 0 for drawn, name in zip(draws, plan.ids[i], strict=True)):
            raise PlanError(
                f"plan: row {i} reads a noise that has no id; give it an id of 0 to 2**32-1"
            )
        written |= sum(1 << slot for slot in row.dst if slot >= 0)
    last = plan.program.rows[-1]
    if plan.call[0] >= 0 or last.call >= 0:
        raise PlanError(
            "plan: the first and the last row call no model; row 0 starts the run and the last row "
            "holds"
        )
    if last.reads != 1 or plan.M[-1, 0, 0] != 1 or max(last.du, last.dv) >= 0 or last.known_reads:
        raise PlanError("plan: the last row must hold (x' = x, nothing written)")
