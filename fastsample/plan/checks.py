"""What makes a Plan sound: shapes, finite numbers, words in range, and no slot or noise read that
nothing wrote or named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .file import CAPS, PlanError

if TYPE_CHECKING:
    from .plan import Plan

STORED = ("x0", "eps", "flow", "d")  # kinds of the prediction m
# Every array of a Plan and its shape: R rows, W operands, Y = 1 + L, the other letters as in Plan.
FLOATS = {
    "M": "R3W",
    "p": "R",
    "q": "R",
    "clip": "R",
    "U": "RG",
    "V": "RGK",
    "known": "RY",
    "c": "R",
    "t": "RE",
    "preview": "R2",
    "alpha": "R",
    "sigma": "R",
}
INTS = {"reads": "R", "branches": "R", "known_reads": "R", "dst": "R2", "call": "R", "ids": "RL"}


def check(plan: Plan) -> None:
    """PlanError, one sentence, for the first thing that is unsound."""
    _check_shapes(plan)
    _check_values(plan)
    _check_reads(plan)


def slots_read(plan: Plan, row: int) -> int:
    """Bit s: the row reads slot s."""
    return (int(plan.reads[row]) >> 1) & ((1 << plan.S) - 1)


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
    size = {**plan.dims, "W": plan.W, "Y": 1 + plan.L, "2": 2, "3": 3}
    for name, dims in {**FLOATS, **INTS}.items():
        want = tuple(size[d] for d in dims)
        if getattr(plan, name).shape != want:
            raise PlanError(
                f"plan: {name} has shape {list(getattr(plan, name).shape)}; {list(want)} is needed"
            )
    if not isinstance(plan.note, dict):
        raise PlanError(f"plan: the note is a {type(plan.note).__name__}; a dict is needed")
    if plan.note.get("stored", "x0") not in list(STORED):
        raise PlanError(
            f"plan: the note's stored kind is {plan.note['stored']!r}; {', '.join(STORED)} are "
            "accepted"
        )


def _check_values(plan: Plan) -> None:
    for name in FLOATS:
        bad = ~np.isfinite(getattr(plan, name))
        if bad.any():
            where = tuple(int(k) for k in np.argwhere(bad)[0])
            raise PlanError(
                f"plan: {name}{list(where)} is {getattr(plan, name)[where]}; every number must be "
                "finite"
            )
    ranges = {
        "reads": (0, 2**plan.W - 1),
        "branches": (0, 2**plan.G - 1),
        "known_reads": (0, 2 ** (1 + plan.L) - 1),
        "dst": (-1, plan.S - 1),
        "call": (-1, 255),
        "ids": (-1, 2**32 - 1),
    }
    for name, (low, high) in ranges.items():
        array = getattr(plan, name)
        if array.size and (array.min() < low or array.max() > high):
            bad = array[(array < low) | (array > high)].ravel()[0]
            raise PlanError(f"plan: {name} holds {bad}; {low} to {high} is accepted")
    negative = any((array < 0).any() for array in (plan.clip, plan.alpha, plan.sigma))
    if negative or (plan.alpha + plan.sigma <= 0).any():
        raise PlanError(
            "plan: clip, alpha or sigma is negative, or alpha = sigma = 0; levels and bounds are 0 "
            "or more"
        )


def _check_reads(plan: Plan) -> None:
    written = 0
    for i in range(plan.rows):
        unwritten = slots_read(plan, i) & ~written
        if unwritten:
            raise PlanError(
                f"plan: row {i} reads slot {unwritten.bit_length() - 1} that no earlier row wrote"
            )
        u, v = plan.dst[i]
        if u == v >= 0:
            raise PlanError(f"plan: row {i} writes slot {u} twice; u and v need slots of their own")
        noise = (plan.reads[i] >> (3 + plan.S + plan.G)) | (plan.known_reads[i] >> 1)
        if any((noise >> k) & 1 and plan.ids[i, k] < 0 for k in range(plan.L)):
            raise PlanError(
                f"plan: row {i} reads a noise that has no id; give it an id of 0 to 2**32-1"
            )
        for d in (u, v):
            written |= 1 << int(d) if d >= 0 else 0
    last = plan.rows - 1
    if plan.call[0] >= 0 or plan.call[last] >= 0:
        raise PlanError(
            "plan: the first and the last row call no model; row 0 starts the run and the last row "
            "holds"
        )
    if (
        plan.reads[last] != 1
        or plan.M[last, 0, 0] != 1
        or (plan.dst[last] >= 0).any()
        or plan.known_reads[last]
    ):
        raise PlanError("plan: the last row must hold (x' = x, nothing written)")
