"""Every number of a plan moved to where its end points are nearest to the teacher's: steps of
Gauss-Newton through the whole run, with differences in place of gradients.

    theta' = theta - (sum_k memory^k J_k' W_k J_k + mu diag)^-1 J_0' W_0 r_0
    r = x(theta) - X,  J = dr / dtheta,  W = 1 / mean_d r_b^2 for sample b

X [B,D]: the teacher's end points; k counts mini-batches back from the newest. With that W the step
lessens the mean of log mean_d r_b^2, which is the mean of each sample's own PSNR.

theta, of any deterministic plan of any solver (`_numbers`): the log of the start scale; of every
row that asks the model its label lambda = log(alpha / sigma), and with it alpha, sigma, the model's
time, c, p, q and the preview; and the coefficients of x' over the operands that the row reads. What
a row puts into slots is not moved: a slot holds what its row computes, be that a prediction or a
derived quantity. Nor is the label of a row at alpha = 0, or what is not read: a plan may be made
with more `reads=` to have more to move. A polished plan leaves the schedule: it starts from noise
only, and has no remake.

J is taken by forward differences: the plan and its twins, each with one number moved (by .02 in
lambda, .01 in the log scale, a coefficient so that x' moves by 1 % of its size), run in lockstep as
rows of one table, a launch a row for all; a twin shares the plan's run up to the first row that
differs. No gradient is taken, so any model will do: compiled, quantised, or on another machine.

Each step has a mini-batch of its own. A step is taken where the loss on the samples held out of all
of them is at most .1 above the best there yet (.43 dB), else damped tenfold, from mu = .001 up to
10; after one that is taken mu is a third. A label goes no further than 1 at once, nor the log scale
further than .5. A step after which sum_l |w_l| over predictions x0_l of some row would be above 20,
and above what the plan had, is refused unseen. The search ends early after five steps that gain
nothing. The best plan on the samples held out is returned, the one it began with if none is better.

The arguments of `polish`; those of every search are `Given`'s:

    z            unit noise [B,*], or its shape with a seed; other noise than the plans were found
                 with is better
    plans        what to begin with: a Plan of one branch, {M: Plan}, or a Search, whose teacher,
                 which is not judged again, and grid are then those where none is given
    loss         "log", as above; "l2": W the same for all samples, which lessens the pooled error;
                 "trajectory": beside the end point the state at every row against the teacher's, at
                 the labels the plan began with, each over sqrt(alpha^2 sigma_data^2 + sigma^2); or
                 a callable, x [m,*] -> features [m,F]: r = features(x) - features(X)
    iterations   steps at most
    batch        samples of a mini-batch
    held         share of the samples, the last ones, that judge
    memory       what J'WJ of earlier mini-batches keeps of its weight at each step, 0 to below 1
    jvp          J by torch.func.jvp of the run instead, for models in torch: the same to the error
                 of differences; it shares nothing, so costs P M evaluations for a sample and step

The seed is also that of the order of mini-batches (None: 0 beside noise that is given).

Evaluations per sample beside the teacher's, with H of B samples held out: for each plan of M
evaluations and P numbers (2 H M + steps b E + tries H M) / B, b the batch, tries >= steps, and
E = `Numbers.evaluations()`, those of a sample with its twins: for rows over the whole history, as
`fit` makes them, M + sum_{i=1..M} (1 + i + (i-1)(i+2)/2).

Memory: the teacher's N+1 states, and 8 batch_size rows of twins with their slots. Sums are float64,
one sample after the other: the plan does not depend on how samples are cut into calls, as far as
the model's answers do not.

Levenberg 1944; Marquardt 1963. Coefficients learned through the sampler by gradients: Shaul et al.
2023 (arXiv:2310.19075), Frankel et al. 2025 (arXiv:2502.17423).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from .. import grids
from ..model import Model
from ..plan import Plan
from ..plan.given import real
from ..runtime import arguments
from ..trajectories import Denoiser
from ._given import numbered, one_of, whole
from ._newton import Options, Polisher
from ._numbers import Numbers
from ._search import Search
from ._setting import Found, Setting
from ._teacher import STEPS

LOSSES = ("log", "l2", "trajectory")
NEAR = 1e-6  # of alpha + sigma, or of a time: a row that stands so near to a node stands there


@numbered
def polish(
    model: Model,
    z: Tensor | Sequence[int],
    plans: Plan | Mapping[int, Plan] | Search,
    *,
    loss: str | Callable[[Tensor], Tensor] = "log",
    iterations: int = 8,
    batch: int = 24,
    held: float = 0.15,
    memory: float = 0.8,
    jvp: bool = False,
    **given: Any,
) -> Search:
    """Polish plans on `model`; the module's docstring, with which `help` goes on, says what each
    argument means, `optimize.Given` those of every search. No plan is worse than it was on the
    samples held out, of which the errors of the Search are. The Search has no indices, since times
    leave its grid. Raises ValueError or TypeError, one sentence, for bad input.
    """
    starts = _starts(plans, model)
    options = _options(loss, iterations, batch, held, memory, jvp, given)
    known = isinstance(plans, Search) and given.get("teacher") is None
    if known:
        given["teacher"] = plans.teacher
    elif loss == "trajectory" and not isinstance(given.get("teacher"), Plan):
        given["teacher"] = _with_labels(model, given.get("teacher"), starts)
    own = {"plans": plans, "loss": loss, "iterations": iterations, "batch": batch, "held": held}
    own |= {"memory": memory, "jvp": jvp}
    setting = Setting.of("polish", model, z, max(starts), given, own)
    if known:
        setting.teacher = replace(setting.teacher, make=None, agreement=plans.agreement)
    options, B = _split(options, held, setting), len(setting.z)
    nodes = {m: None for m in starts}
    if loss == "trajectory":
        nodes = {m: _nodes(plan, model, setting.teacher.grid) for m, plan in starts.items()}

    def solve(ask: Denoiser, X: Tensor, first: Tensor) -> dict[int, Found]:
        words = {"weight": setting.weight, "wide": ask.wide, "asked": ask.count}
        found = {}
        for m, plan in sorted(starts.items()):
            path = None if nodes[m] is None else X[:, nodes[m]]
            data = setting.model, plan, setting.z, X[:, 0]
            polisher = Polisher(*data, setting.words, options, path=path, **words)
            while polisher.advance():
                pass
            found[m] = Found(None, polisher.state.error, polisher.plan, polisher.note())
        return found

    most = sum(_evaluations(Numbers(plan, model), options) for plan in starts.values())
    taken = setting._room(setting.N + 1)
    return _search(setting, *setting._solved(most / B, solve), taken)


def _starts(plans: Any, model: Model) -> dict[int, Plan]:
    """The plans by their evaluations, each fit to be polished on this model."""
    several = plans.plans if isinstance(plans, Search) else plans
    starts = {plans.nfe: plans} if isinstance(plans, Plan) else several
    if not isinstance(starts, Mapping) or not starts:
        raise TypeError(
            f"polish: plans is {plans!r:.60}; a Plan, a dict of them by their evaluations, or a "
            "Search is accepted"
        )
    if not isinstance(model, Model):
        raise TypeError(f"polish: the model is a {type(model).__name__}; an fs.Model is needed")
    for m, plan in starts.items():
        if not isinstance(plan, Plan) or plan.nfe != m:
            raise ValueError(
                f"polish: plans[{m!r}] is {plan!r:.80}; a Plan of {m!r} evaluations is accepted"
            )
        Numbers(plan, model).check()
    return dict(starts)


def _options(
    loss: Any, iterations: int, batch: int, held: Any, memory: Any, jvp: bool, given: Mapping
) -> Options:
    """Refuse arguments of `polish` alone; how many samples are held out is left to `_split`."""
    if not callable(loss):
        one_of("polish", loss, "loss", LOSSES)
    whole("polish", iterations=iterations, batch=batch)
    if not 0 < (real(held) or 0) < 1:
        raise ValueError(f"polish: held={held!r:.60}; a share above 0 and below 1 is needed")
    share = real(memory)
    if share is None or not 0 <= share < 1:
        raise ValueError(f"polish: memory={memory!r:.60}; at least 0 and below 1 is needed")
    if not isinstance(jvp, bool):
        raise ValueError(f"polish: jvp={jvp!r:.60}; True or False is accepted")
    if "all_budgets" in given:
        raise TypeError("polish: all_budgets is given; the budgets are those of its plans")
    seed = given.get("seed")
    if seed is not None and arguments.integer(seed) is None:
        raise TypeError(f"polish: seed is {seed!r:.60}; an int, or None, is accepted")
    return Options(loss, iterations, batch, 1, float(memory), jvp, 0)


def _split(options: Options, held: float, setting: Setting) -> Options:
    """The options with the samples held out, and the seed of the mini-batches' order."""
    B = len(setting.z)
    if B < 2:
        raise ValueError("polish: one noise is given; two or more, of which one judges, are needed")
    apart = min(max(round(held * B), 1), B - 1)
    return replace(options, held=apart, seed=int(setting.note["seed"] or 0))


def _evaluations(numbers: Numbers, options: Options) -> int:
    """Evaluations of a polish whose every first try is taken, of all samples together."""
    M, train = numbers.plan.nfe, options.batch
    each = len(numbers.all) * M if options.jvp else numbers.evaluations()
    return options.held * M * (2 + options.iterations) + options.iterations * train * each


def _with_labels(model: Model, teacher: Any, starts: Mapping[int, Plan]) -> Any:
    """The grid of a teacher that visits every label of the plans too."""
    schedule, steps = model.schedule, STEPS if teacher is None else teacher
    grid = grids.fine(schedule, steps) if np.ndim(steps) == 0 else grids.check(schedule, steps)
    for plan in starts.values():
        level = np.log(plan.alpha[2:-1]) - np.log(plan.sigma[2:-1])
        for t in schedule.time(level):
            if np.abs(grid - t).min() > NEAR * max(abs(t), 1.0):
                grid = np.sort(np.append(grid, t))[::-1]
    return grid


def _nodes(plan: Plan, model: Model, grid: np.ndarray) -> list[int]:
    """For rows 2, 3, ... of the plan that ask the model the node at which they stand, counted from
    the data end.
    """
    t, found = grid[::-1], []
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    for row in range(2, plan.rows - 1):
        a, s = plan.alpha[row], plan.sigma[row]
        off = np.maximum(np.abs(alpha - a), np.abs(sigma - s)) / (a + s)
        found.append(int(off.argmin()))
        if off.min() > NEAR:
            raise ValueError(
                f"polish: loss='trajectory' and the teacher has no state where row {row} of "
                f"{plan!r} stands, at alpha = {a:.6g}, sigma = {s:.6g}; a teacher that is None, a "
                "number of steps or a grid is accepted"
            )
    return found


def _search(setting: Setting, found: Mapping[int, Found], nfe: float, taken: int) -> Search:
    """The answers as a Search, compared on held-out noise where there is any."""
    teacher, B = setting.teacher, len(setting.z)
    error = {m: answer.error for m, answer in found.items()}
    spent = (nfe, B, time.perf_counter() - setting.begin, teacher.agreement, teacher.nfe)
    search = Search({}, error, {}, teacher.grid, teacher.plan, *spent, bytes=taken)
    for m, answer in found.items():
        said = {
            "method": "polish",
            **setting.note,
            "teacher": teacher.note(),
            "compared": "not compared",
            **answer.note,
            "budget": m,
            "samples": B,
            "error": answer.error,
            "evaluations": nfe,
        }
        search.plans[m] = answer.plan.with_note(found=said)
    return search if setting.held_out is None else setting._compared(search)
