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


class Handed:
    """The sample that a step handed back, and how often it had been written to by then; carried: it
    was the state itself.
    """

    def __init__(self, sample: Tensor, carried: bool):
        self.sample, self.version, self.carried = sample, sample._version, carried

    def is_it(self, sample: Tensor) -> bool:
        """Is this that sample, unwritten since?"""
        return sample is self.sample and sample._version == self.version

    def aside(self, run: Run, f: Tensor, x: Tensor, k: float) -> tuple[Tensor, Tensor] | None:
        """(output, state) that stand for an edited sample of state x at an anchored row: the state
        of before, and f + (p - k)/q·(x - before), whose m - k·x there is that of f at x. None, with
        one warning, where the state of before was written to in place, and so is lost.
        """
        before = self.sample if self.carried else run.x
        if self.carried and before._version != self.version:
            warnings.warn(
                "FsScheduler: the sample was written to in place, and the earlier one that the "
                "source keeps moved with it; a new tensor (x = 0.9 * x) is taken as in diffusers",
                stacklevel=6,
            )
            return None
        p, q = float(run.plan.p[run.row]), float(run.plan.q[run.row])
        return f + ((p - k) / q * (x.to(before.dtype) - before)).to(f.dtype), before
