"""Edits: what a change of the sample between two steps means where a row comes back to an earlier
x, which diffusers keeps (Heun's base, UniPC's corrected x, the first x of a group of steps).

The rows have that x as a combination of the state and the predictions, so that they write one slot.
Those that come back are named in the plan's note ("anchored"), as pairs (row, k): there an edit
moves m - k·x alone, m the row's prediction, within its bounds: the model's answer (k = 0), or
Heun's slope (k = 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ... import caller
from ...plan import Plan
from ...runtime import arguments

if TYPE_CHECKING:
    from .loop import Loop


def anchored(plan: Plan) -> dict[int, float]:
    """k of every row that comes back to an x of before."""
    return dict(plan.note.get("anchored") or ())


def counted(x: Tensor) -> tuple[Tensor, int]:
    """x, or of an inference tensor a copy, and how often it was written to, which is counted."""
    x = x.clone() if x.is_inference() else x
    return x, x._version


def aside(
    loop: Loop, f: Tensor, x: Tensor, sample: Tensor, k: float
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """(output, state, what to add to x') that stand for an edited sample of state x at an anchored
    row: the state before the edit, and f + (p - k)/q·(x - before), whose m - k·x there is that of f
    at x. Of a slope's row, which keeps nothing else, the edited state itself, whose m is bounded
    and shown, less what the edit moves in x' beside m - k·x.

    None for the very tensor that was handed back, unwritten, or in half precision a copy of it,
    and, with one warning, where it and the state that it was made from were written to.
    """
    run, unwritten = loop._run, loop._handed._version == loop._written
    copied = lambda: not loop._carried and torch.equal(sample, loop._handed)
    if unwritten and (sample is loop._handed or copied()):
        return None
    before = run.x if not loop._carried else loop._handed if unwritten else _again(loop)
    if before is None:
        caller.warn(
            "FsScheduler: the sample was written to in place, and so was the one before it, so "
            "that the earlier one that the source keeps moved with it; a new tensor (x = 0.9 * x) "
            "is taken as in diffusers"
        )
        return None
    plan, row, edit = run.plan, run.row, x.to(before.dtype) - before
    if k and (plan.dst[row] < 0).all():
        of_x, of_m = plan.M[row, 0, [0, plan.layout.m]].tolist()
        return f, x, -(of_x + k * of_m) * edit
    p, q = float(plan.p[row]), float(plan.q[row])
    return f + ((p - k) / q * edit).to(f.dtype), before, None


def selected(loop: Loop, index: Tensor) -> None:
    """What the next sample is compared with, of these samples [n]; it was written to if it was
    before.
    """
    loop._chosen, loop._returned = True, None
    for name, at in (("_handed", "_written"), ("_read", "_read_written")):
        x = getattr(loop, name)
        if x is not None:
            with torch.inference_mode(False):
                chosen = x[index.to(x.device)]
            setattr(loop, at, chosen._version - (x._version != getattr(loop, at)))
            setattr(loop, name, chosen)


# -- inside ----------------------------------------------------------------------------------------
def _again(loop: Loop) -> Tensor | None:
    """x' of the row before once more, from the x that it read and from what the run keeps; None
    where that x was written to since. Of the row's own m there is what the row kept of it.
    """
    if loop._read._version != loop._read_written:
        return None
    plan, row, slots = loop._run.plan, loop._run.row - 1, loop._run._pool.slots
    at, M = plan.layout, plan.M[row].tolist()
    known = {at.slot(s): slots[s] for s in plan.program.rows[row].slots_read(at)}
    ids = enumerate(arguments.drawn(plan, row, masked=False))
    known |= {at.noise(k): loop._draws(name, None) for k, name in ids if name is not None}
    known[0] = loop._read
    summed = lambda out: sum(M[out][c] * v for c, v in known.items() if M[out][c])
    if not M[0][at.m]:
        return summed(0)
    kept = next(i for i in (1, 2) if plan.dst[row, i - 1] >= 0 and M[i][at.m])
    m = (slots[plan.dst[row, kept - 1]] - summed(kept)) / M[kept][at.m]
    return summed(0) + M[0][at.m] * m
