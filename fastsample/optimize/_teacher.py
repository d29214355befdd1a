"""The teacher of a search: a plan that visits every node of the search's grid, and how far its end
points agree with those at twice its evaluations.

The search's grid and the teacher's steps are chosen apart: the second is the first with every
interval cut in equal parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import caller, grids, metrics, solvers
from ..guidance import guided
from ..model import Model
from ..plan import Plan
from ..runtime import arguments, outputs
from ..trajectories import Denoiser, visits
from ._given import Given, cut
from ._search import figure

STEPS = 40  # of the search's grid
MOST_STEPS = 320  # of the teacher's, in refining
SOLVER = "dpmpp_3m"
JUDGED = 4  # samples the agreement is measured on
SETTLED, POOR = 60.0, 45.0  # dB: no more steps are needed; the end points are no target


@dataclass(frozen=True)
class Teacher:
    """make(parts): the plan with every interval of `grid` [N+1] cut in so many; for a user's own
    plan parts is 1, or 2 to judge it by.

    agreement [dB] is None before `settle`, and where no finer plan can be made; nfe counts the
    evaluations per sample it took.
    """

    grid: np.ndarray
    plan: Plan
    make: Callable[[int], Plan] | None
    most: int
    agreement: float | None = None
    nfe: float = 0.0

    def note(self) -> dict[str, Any]:
        """JSON; an agreement of inf (equal to the bit) is "inf", an unknown one "not measured"."""
        agreement = "not measured" if self.agreement is None else figure(self.agreement)
        return {
            "solver": self.plan.note.get("solver", "unnamed"),
            "nfe": self.plan.nfe,
            "agreement": agreement,
            "agreement_evaluations": self.nfe,
        }


def choose(where: str, model: Model, given: Given, budget: int) -> Teacher:
    """The search's grid, of at least `budget` steps, and the teacher before it is refined."""
    wrap = lambda plan: guided(plan) if given.uncond is not None and plan.G == 1 else plan
    teacher, searched = given.teacher, given.grid
    if isinstance(teacher, Plan):
        grid = own = np.asarray(teacher.note.get("times", []), np.float64)
        if teacher.L or teacher.entries[:1] != (0,) or len(own) < 2:
            raise ValueError(
                f"{where}: the teacher {teacher!r} draws noise or names no times; a solver's "
                "deterministic plan is needed"
            )
        if searched is not None:
            grid = _grid(where, model, "grid", searched)
        _steps(where, grid, budget)
        plan = wrap(teacher)
        _nodes(where, plan, model, own)  # refuses another schedule's before the model is asked
        make = _remade(plan, model, own)
        if searched is not None:
            plan, make = _standing(where, plan, model, grid, make)
        return Teacher(grid, plan, make, most=0)
    if teacher is not None and searched is not None:
        raise ValueError(
            f"{where}: teacher={teacher!r:.60} beside grid=, and both name a grid; a Plan, "
            "or None, is accepted beside grid="
        )
    asked = ("teacher", teacher) if searched is None else ("grid", searched)
    grid = _grid(where, model, *asked)
    _steps(where, grid, budget)
    fine = lambda parts: grids.refined(model.schedule, grid, parts)
    make = lambda parts: wrap(solvers.SOLVERS[SOLVER](model, fine(parts)))
    return Teacher(grid, make(1), make, MOST_STEPS)


def _grid(where: str, model: Model, name: str, value: Any) -> np.ndarray:
    """The grid [N+1] of None, a number of steps or times."""
    steps = STEPS if value is None else value
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    if not whole and np.ndim(steps) == 0:
        last = "a grid, or a solver's Plan" if name == "teacher" else "or a grid"
        raise ValueError(
            f"{where}: {name}={steps!r:.60}; None, a whole number of steps, {last} is accepted"
        )
    return grids.fine(model.schedule, steps) if whole else grids.check(model.schedule, steps)


def _standing(
    where: str, plan: Plan, model: Model, grid: np.ndarray, make: Callable[[int], Plan] | None
) -> tuple[Plan, Callable[[int], Plan] | None]:
    """The plan, or the first of it cut in 2, 4 and 8 parts, that stands at every node of the grid,
    and how to cut that.
    """
    for parts in (1, 2, 4, 8) if make else (1,):
        cut = plan if parts == 1 else make(parts)
        try:
            nodes = _nodes(where, cut, model, grid)
        except ValueError:
            continue
        if {1, cut.rows - 1} <= nodes.keys():  # begins and ends with the grid
            return cut, make and (lambda more, parts=parts: make(more * parts))
    raise ValueError(
        f"{where}: the teacher {plan!r}, whole or with its steps cut in 2, 4 or 8, is not at "
        f"every time of the grid from {grid[0]:.6g} to {grid[-1]:.6g}; times of it, the first and "
        "the last among them, are accepted"
    )


def _steps(where: str, grid: np.ndarray, budget: int) -> None:
    if budget >= len(grid):
        found = f"{where}: budget={budget} on a teacher grid of {len(grid) - 1} steps"
        raise ValueError(
            f"{found}; a budget of at most {len(grid) - 1}, or a finer teacher, is needed"
        )


def _nodes(where: str, plan: Plan, model: Model, grid: np.ndarray) -> dict[int, int]:
    """{row before which the plan stands at a time of the grid: that node, counted from the data
    end}; the last such row of each.
    """
    node_of, levels = {}, np.stack([plan.alpha[1:], plan.sigma[1:]])
    points = zip(model.schedule.alpha(grid), model.schedule.sigma(grid), strict=True)
    for k, (a, s) in enumerate(points):
        here = np.flatnonzero((np.abs(levels - [[a], [s]]) <= 1e-9 * (a + s)).all(0))
        if not len(here):
            raise ValueError(
                f"{where}: the teacher has no row at its time {grid[k]:.6g}; a plan made for this "
                "model's schedule is needed"
            )
        node_of[int(here[-1]) + 1] = len(grid) - 1 - k
    return node_of


def _remade(plan: Plan, model: Model, grid: np.ndarray) -> Callable[[int], Plan] | None:
    """parts -> the plan's own solver on its grid cut in so many, from its note; None where the note
    does not give the plan itself back.
    """
    added = plan.note.get("guidance")

    def make(parts: int) -> Plan:
        times = grids.refined(model.schedule, grid, parts).tolist()
        made = solvers.remake(plan.with_note(grid=times, guidance=None), None)
        return made if added is None else guided(made, added["branches"], added["interval"])

    try:
        make(2)
        pairs = zip(make(1).table(np.float64), plan.table(np.float64), strict=True)
        return make if all(np.array_equal(a, b) for a, b in pairs) else None
    except (ValueError, TypeError, LookupError):
        # A learned table, a model that tells its times by a callable, a strange note.
        return None


def settle(
    where: str,
    teacher: Teacher,
    ask: Denoiser,
    z: Tensor,
    words: Mapping[str, Any],
    weight: np.ndarray | None = None,
) -> Teacher:
    """The teacher with as many steps as it takes, judged on the first samples with their own words;
    their rows are counted in `ask`.

    Below 60 dB of agreement its steps are doubled up to 320; below 45 dB at the end a warning says
    so. A user's own plan is only judged.
    """
    if teacher.make is None:
        return teacher
    few, before, ranks = z[:JUDGED], ask.rows, words["ranks"]
    chunks = arguments.chunks(where, len(few), words["batch_size"])

    def end(plan: Plan) -> Tensor:
        out = torch.empty_like(few, dtype=ask.wide)

        def visit(samples: slice) -> None:
            given = cut(words, samples) | {"state_dtype": ask.wide}
            for _, _, x, f in visits(plan, ask.model, few[samples], **given):
                if f is None:
                    out[samples] = x

        ranks.deal(chunks, visit, lambda samples: out[samples])
        ask.count(plan.nfe * len(few))
        out = out.cpu()  # once, for all that is asked of it
        if not out.isfinite().all():
            found = f"the end points of {plan.nfe} evaluations of the teacher are not finite"
            why = outputs.fault(plan, ask.model_dtype, few.numel(), 1)
            raise ValueError(f"{where}: {found}; {why}")
        return out

    judged = None if weight is None else weight[:JUDGED].reshape(few.shape)
    plan, agreement, _ = metrics.settled(teacher.make, end, SETTLED, teacher.most, judged)
    if agreement < POOR and ranks.first:
        name = f"{plan.note.get('solver', 'unnamed')}, {plan.nfe} evaluations"
        caller.warn(
            f"{where}: the teacher ({name}) agrees to {agreement:.1f} dB with twice as many "
            f"evaluations; a target needs {POOR:g} dB: pass teacher= with more steps, or a plan "
            "that fits the model better, and look whether the model answers alike when it is asked "
            "the same again (model.eval())",
        )
    return replace(teacher, plan=plan, agreement=agreement, nfe=(ask.rows - before) / len(z))


def walk(
    where: str,
    plan: Plan,
    ask: Denoiser,
    z: Tensor,
    grid: np.ndarray,
    words: Mapping[str, Any],
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """X [B,N+1,D], the teacher's states from the data end, and its first x0 [B,D], in kept
    [B,N+2,D]. A node's state is that of the last row there.
    """
    N, node_of = len(grid) - 1, _nodes(where, plan, ask.model, grid)
    chunks = arguments.chunks(where, len(z), words["batch_size"])

    def visit(samples: slice) -> None:
        given = cut(words, samples) | {"state_dtype": ask.wide}
        for _, row, x, f in visits(plan, ask.model, z[samples], **given):
            if row in node_of:
                kept[samples, node_of[row]] = x.flatten(1).to(kept)
            if row == 1:
                kept[samples, -1] = ask.x0(x.flatten(1), f.flatten(1), N).to(kept)

    words["ranks"].deal(chunks, visit, lambda samples: kept[samples])
    ask.count(plan.nfe * len(z))
    return kept[:, :-1], kept[:, -1]
