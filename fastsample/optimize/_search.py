"""Search: what a search found, keyed by the number of evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..files import make_folder
from ..plan import Plan, provenance
from ..plan.text import named
from ._card import html


def figure(value: float) -> float | str:
    """A number as JSON; one that is not finite is its name."""
    return value if np.isfinite(value) else str(value)


@dataclass(frozen=True, eq=False)
class Compared:
    """A found plan beside the best one made by hand, both on held-out noises: PSNR in dB to the
    teacher's end points.

    plan             Plan    the best by hand of as many evaluations, named by `solver` and `grid`
    by_hand, found   float   dB of that plan, and of the plan the search found
    samples          int     held-out noises
    psnr             floats  of the found plan: mean of each sample's own dB, and its quartiles 25,
                             50, 75
    """

    plan: Plan
    solver: str
    grid: str
    by_hand: float
    found: float
    samples: int
    psnr: tuple[float, ...] = ()

    @property
    def beats(self) -> bool:
        """Is the found plan better than every schedule made by hand?"""
        return self.found > self.by_hand

    def note(self) -> dict[str, Any]:
        """The same as JSON."""
        words = {name: getattr(self, name) for name in ("solver", "grid", "beats", "samples")}
        return {**words, "by_hand": figure(self.by_hand), "found": figure(self.found)}

    def held_out(self) -> dict[str, Any]:
        """The found plan's own figures as JSON."""
        each = [figure(v) for v in self.psnr]
        return {"samples": self.samples, "psnr": each, "pooled": figure(self.found)}

    def __str__(self) -> str:
        verdict = "beats" if self.beats else "does not beat"
        best = f"{self.solver} by hand ({self.grid}), {self.by_hand:.1f} dB"
        return f"{self.found:.1f} dB {verdict} {best}"


@dataclass(frozen=True, eq=False)
class Rung:
    """One kind of plan, judged on held-out noise: PSNR in dB to the teacher's end points.

    name      str                       "by hand", "model-free", "fit", "polish", "the teacher"
    plans     {M: Plan}                 by evaluations
    psnr      {M: (4 floats)}           mean of each sample's own dB, and its quartiles 25, 50, 75
    pooled    {M: float}                dB of the mean squared error over samples and elements
    nfe       float                     model evaluations per sample that it took
    seconds   float                     wall-clock time of it
    ends      {M: [n,*] float32 array}  end points of the first held-out noises; may be empty
    """

    name: str
    plans: Mapping[int, Plan]
    psnr: Mapping[int, tuple[float, float, float, float]]
    pooled: Mapping[int, float]
    nfe: float = 0.0
    seconds: float = 0.0
    ends: Mapping[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Search:
    """The outcome of a search over subsets of a fine grid t_0 > t_1 > ... > t_N (noise -> data).

    plans     {M: Plan}         one plan per budget of M evaluations; `plan` is the largest
    error     {M: float}        mean |x(plan) - x(teacher)|^p over samples and elements, at the data
                                end, on the noises searched with
    indices   {M: [M+1] int64}  places of the plan's times in `grid`, increasing, the last = N
    grid      [N+1] float64     the fine grid, in the schedule's t
    teacher   Plan              the plan that drew the target trajectory
    nfe       float             model evaluations spent per sample, the teacher's included (one =
                                one row's call, however many branches)
    samples   int               noises searched with
    seconds   float             wall-clock time of the search, the comparison apart
    agreement float | None      PSNR in dB of the teacher's end points to those at twice its
                                evaluations, on at most 4 of the samples; None where it cannot be
                                measured (a user's own plan that its note does not make again)
    agreement_nfe float         model evaluations per sample spent on it, part of nfe
    compared  {M: Compared}     each plan beside the best made by hand, on held-out noise; empty
                                where none was given
    compared_nfe float          evaluations per sample searched with, spent on that, not in nfe
    bytes     int               what states and targets took at most
    rungs     (Rung, ...)       what the front tried, the best last; empty for a single search
    target    [n,*] array       the teacher's end points of the noises of the rungs' ends, or None
    command   str | None        the command that makes it again
    stopped   str | None        what ended a climb before its top: "time_limit", "interrupted" or
                                "failed"
    """

    plans: Mapping[int, Plan]
    error: Mapping[int, float]
    indices: Mapping[int, np.ndarray]
    grid: np.ndarray
    teacher: Plan
    nfe: float
    samples: int
    seconds: float
    agreement: float | None = None
    agreement_nfe: float = 0.0
    compared: Mapping[int, Compared] = field(default_factory=dict)
    compared_nfe: float = 0.0
    bytes: int = 0
    rungs: tuple[Rung, ...] = ()
    target: Any = None
    command: str | None = None
    stopped: str | None = None

    @property
    def plan(self) -> Plan:
        """The plan of the largest budget."""
        return self.plans[max(self.plans)]

    @property
    def judged(self) -> tuple[Rung, ...]:
        """The rungs, the best last. A single search has its plans, named by its method, and before
        them the best by hand, where it was compared, whose dB are pooled.
        """
        if self.rungs:
            return tuple(self.rungs)
        each = {m: beside.psnr for m, beside in self.compared.items() if beside.psnr}
        pooled = {m: beside.found for m, beside in self.compared.items()}
        name = str(provenance.found(self.plan).get("method", "found"))
        ours = Rung(name, self.plans, each, pooled, self.nfe, self.seconds)
        if not self.compared:
            return (ours,)
        plans = {m: beside.plan for m, beside in self.compared.items()}
        by_hand = {m: beside.by_hand for m, beside in self.compared.items()}
        return Rung("by hand", plans, {}, by_hand, self.compared_nfe), ours

    def commanded(self, command: str) -> Search:
        """The search with the command that makes it again, in the notes of its plans too."""
        said = lambda plan: {**plan.note["found"], "command": command}
        plans = {m: plan.with_note(found=said(plan)) for m, plan in self.plans.items()}
        return replace(self, plans=plans, command=command)

    def save(self, folder: str | Path, name: str = "plan") -> list[Path]:
        """Write every plan as folder/name-<evaluations>.fsplan, each whole or not at all; the
        folder is made. Returns the paths.
        """
        folder = make_folder(folder)
        paths = {budget: folder / f"{name}-{budget}.fsplan" for budget in sorted(self.plans)}
        for budget, path in paths.items():
            self.plans[budget].save(path)
        return list(paths.values())

    def about_teacher(self) -> str:
        """The teacher and its agreement in words."""
        name = f"{named(self.teacher)}, {self.teacher.nfe} evaluations"
        if self.agreement is None:
            return f"teacher: {name}; its agreement with twice as many was not measured"
        return f"teacher: {name}; it agrees to {self.agreement:.1f} dB with twice as many"

    _repr_html_ = html

    def __repr__(self) -> str:
        budgets = ", ".join(f"{m}: {self.error[m]:.3g}" for m in sorted(self.plans))
        by_hand = "; ".join(f"{m}: {self.compared[m]}" for m in sorted(self.compared))
        by_hand = by_hand or "not compared with schedules made by hand"
        return (
            f"Search({named(self.plan)}, error by evaluations "
            f"{{{budgets}}}, {self.about_teacher()}, {by_hand}, "
            f"{self.nfe:g} evaluations a sample, {self.samples} samples, {self.seconds:.1f} s)"
        )
