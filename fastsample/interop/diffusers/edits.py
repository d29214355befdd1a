"""Edits: what a change of the sample between two steps means where a row comes back to an earlier
x, which diffusers keeps (Heun's base, UniPC's corrected x, the first x of a group of steps).

The rows have that x as a combination of the state and the predictions, so that they write one slot.
Those that come back are named in the plan's note ("anchored"), as pairs (row, k): there an edit
moves m - k·x alone, m the row's prediction: the model's answer (k = 0), or Heun's slope (k = 1).
"""

from __future__ import annotations

import warnings

from torch import Tensor

from ...plan import Plan
from ...runtime.run import Run


def anchored(plan: Plan) -> dict[int, float]:
    """k of every row that comes back to an x of before."""
    return dict(plan.note.get("anchored") or ())


def aside(
    run: Run, f: Tensor, x: Tensor, sample: Tensor, handed: tuple[Tensor, int, bool], k: float
) -> tuple[Tensor, Tensor] | None:
    """(output, state) that stand for an edited sample of state x at an anchored row: the state
    before the edit, and f + (p - k)/q·(x - before), whose m - k·x there is that of f at x.

    handed: the tensor handed back last, its version then, and whether it was the state itself. None
    for that very tensor, and, with one warning, where a state was written to in place.
    """
    last, version, carried = handed
    unwritten, before = last._version == version, last if carried else run.x
    if sample is last and unwritten:
        return None
    if carried and not unwritten:
        warnings.warn(
            "FsScheduler: the sample was written to in place, and the earlier one that the source "
            "keeps moved with it; a new tensor (x = 0.9 * x) is taken as in diffusers",
            stacklevel=5,
        )
        return None
    p, q = float(run.plan.p[run.row]), float(run.plan.q[run.row])
    return f + ((p - k) / q * (x.to(before.dtype) - before)).to(f.dtype), before
