"""Search: what a search found, keyed by the number of evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import make_folder
from ..plan import Plan


@dataclass(frozen=True, eq=False, repr=False)
class Search:
    """The outcome of a search over subsets of a fine grid t_0 > t_1 > ... > t_N (noise -> data).

    plans    {M: Plan}        one plan per budget of M evaluations; `plan` is the largest
    error    {M: float}       mean |x(plan) - x(teacher)|^p over samples and elements, at the data end, on the noises searched with
    indices  {M: [M+1] int64} places of the plan's times in `grid`, increasing, the last = N
    grid     [N+1] float64    the fine grid, in the schedule's t
    teacher  Plan             the plan that drew the target trajectory
    nfe      float            model evaluations spent per sample, the teacher's included (one = one row's call, however many branches)
    samples  int              noises searched with
    seconds  float            wall-clock time of the whole search
    """

    plans: Mapping[int, Plan]
    error: Mapping[int, float]
    indices: Mapping[int, np.ndarray]
    grid: np.ndarray
    teacher: Plan
    nfe: float
    samples: int
    seconds: float

    @property
    def plan(self) -> Plan:
        """The plan of the largest budget."""
        return self.plans[max(self.plans)]

    def save(self, folder: str | Path, name: str = "plan") -> list[Path]:
        """Write every plan as folder/name-<evaluations>.fsplan, each whole or not at all; the folder is made. Returns the paths."""
        folder = make_folder(folder)
        paths = [folder / f"{name}-{budget}.fsplan" for budget in sorted(self.plans)]
        for path, budget in zip(paths, sorted(self.plans), strict=True):
            self.plans[budget].save(path)
        return paths

    def __repr__(self) -> str:
        budgets = ", ".join(f"{m}: {self.error[m]:.3g}" for m in sorted(self.plans))
        return (
            f"Search({self.plan.note.get('solver', 'unnamed')}, error by evaluations {{{budgets}}}, "
            f"{self.nfe:g} evaluations a sample, {self.samples} samples, {self.seconds:.1f} s)"
        )
