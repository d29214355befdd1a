"""OSS: the subset of a fine grid a solver does best on, by dynamic programming over a batch of
noises.

    z_k[j] = a_ij z_{k-1}[i*] + b_ij x0(z_{k-1}[i*], t_i)
    i* = argmin_{i>j} mean_samples mean_d |a_ij z_{k-1}[i] + b_ij x0_i - X[j]|^p

Nodes are counted from the data end: 0 = data, N = noise. z_k[j] [B,D] is the student after exactly
k evaluations, standing at node j; X[j] is the teacher there; a_ij, b_ij is the solver's jump from
t_i to t_j, x' = a x + b x0. A multistep solver's jump weighs earlier predictions of the path to
(k-1, i) too, by weights of that path's times. One state is kept per (k, j): the search is greedy.
It follows Pei et al. 2025 (arXiv 2503.21774, alg. 1) with four changes: solvers of several steps,
the cost is averaged over the samples before the argmin (one schedule for all, instead of the median
of one per sample), layer k means k evaluations and not fewer, and one search answers every budget.

The arguments of `oss`; those that every search takes are `optimize.Given`:

    z            unit noise [B,*] on the device of the model and its words, or its shape with a
                 seed; every sample pulls on the same schedule
    budget       most evaluations; every number up to it has a plan
    solver       a key of solvers.SOLVERS that asks the model once a step and draws no noise. A jump
                 reads at most 3 predictions, and older ones that it weighs in one ratio to x, as a
                 corrector does
    start        "free": the noise may be labelled with any node of the grid; "fixed": with the
                 first one
    aggregate    "joint": one schedule of least mean cost; "median": a schedule per sample, then the
                 middle node at each position, for a solver of solvers.JUMPS alone
    p            exponent of the cost
    amplitude    scale the noise too, by a factor per budget; None: with a free start of the joint
                 form

Evaluations per sample, whatever the solver, with the teacher's T, whose first output is used again,
and the A that its agreement with its double took:

                   budget M                  every budget <= M
    fixed start    T + A + (M-1)(N-M+1)      T + A + (M-1)N - M(M-1)/2
    free start     T + A + M(N-M+1) - 1      T + A + MN - M(M-1)/2 - 1

T = `search.teacher.nfe` and A = `search.agreement_nfe`: the steps of T, 2T, ... on at most 4 of the
B samples, times 4/B.

A free start may label the noise with any node i: the run begins at sigma_i times the unit noise.
Two things cost more. The median form walks its schedule once to know its error: + M for each budget
M it answers. `amplitude` begins the run at c sigma_i times the unit noise instead: few Euler steps
shrink what they should keep, and noise too large by 0.5/M or so makes up for most of it. With x(c)
the end points, c = 1 + <X[0] - x(1), g> / <g, g>, g the slope of x between 1 and 1 + 0.5/M; the
best of the three is kept: + 2 M for each budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from .. import solvers
from ..model import Model
from ..plan import Plan
from ..plan.given import real
from ..trajectories import Denoiser
from ._families import words_of
from ._given import numbered, one_of
from ._jumps import Jumps
from ._layers import Layers, Options
from ._search import Search
from ._setting import Found, Setting


@numbered
def oss(
    model: Model,
    z: Tensor | Sequence[int],
    budget: int = 6,
    *,
    solver: str = "euler",
    start: str = "free",
    aggregate: str = "joint",
    p: float = 2.0,
    amplitude: bool | None = None,
    **given: Any,
) -> Search:
    """Search time grids of 1..budget evaluations for `solver` on `model`; the module's docstring,
    with which `help` goes on, says what each argument means, `optimize.Given` those of every
    search. Memory: about (5 + 3 h)(N+1) states [B,D] for jumps that read h predictions; nothing is
    written to disk. Raises ValueError or TypeError, one sentence, for bad input.
    """
    one_of("oss", solver, "solver", solvers.SOLVERS)
    one_of("oss", start, "start", ("fixed", "free"))
    one_of("oss", aggregate, "aggregate", ("joint", "median"))
    if (real(p) or 0.0) <= 0.0:
        raise ValueError(f"oss: p={p!r:.60}; a finite exponent above 0 is accepted")
    if aggregate == "median" and solver not in solvers.JUMPS:
        listed = " or ".join(map(repr, solvers.JUMPS))
        raise ValueError(
            f"oss: aggregate='median' with solver={solver!r}, whose jumps depend on each sample's "
            f"path; {listed}, or aggregate='joint', is accepted"
        )
    own = {"budget": budget, "solver": solver, "start": start, "aggregate": aggregate}
    own |= {"p": p, "amplitude": amplitude}
    setting = Setting.of("oss", model, z, budget, given, own)
    jumps, N = Jumps.of(model, solver, setting.teacher.grid), setting.N
    scaled = amplitude or (amplitude is None and start == "free" and aggregate == "joint")
    options = Options(setting.budgets, start, aggregate, float(p), bool(scaled))

    def solve(ask: Denoiser, X: Tensor, first: Tensor) -> dict[int, Found]:
        layers = Layers(options, ask, jumps, setting.z, X, first, setting.root(options.p))
        layers.fill()
        paths = {m: layers.path(m) for m in options.budgets}
        return {
            m: Found(paths[m], error, *_plan(setting, solver, paths[m], c))
            for m, (c, error) in layers.ends(paths).items()
        }

    states = (5 + 3 * jumps.reads) * (N + 1)
    return setting.search(options.note(), options.evaluations(N), states, solve)


def _plan(setting: Setting, solver: str, path: np.ndarray, c: float) -> tuple[Plan, dict[str, Any]]:
    """The plan on a path of nodes, begun at c times its noise; amplitude: its init_scale over the
    sigma it starts at.
    """
    teacher, make = setting.teacher, solvers.SOLVERS[solver]
    plan = make(setting.model, teacher.grid[setting.N - path], **words_of(solver))
    if path[0] == setting.N:  # at the first node the teacher's own
        c *= teacher.plan.init_scale / plan.init_scale
    # Row 0 scales the unit noise.
    return replace(plan, M=np.concatenate([plan.M[:1] * c, plan.M[1:]])), {"amplitude": c}
