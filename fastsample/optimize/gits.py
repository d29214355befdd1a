"""GITS: the subset of a fine grid whose local errors, each taken from the teacher's own state, add
up to least.

    total = sum_k gamma^k c(i_k, i_{k+1})        c(i, j) = mean_samples d(y_ij) - d(X_j)
    y_ij  = a_ij X_i + b_ij x0(X_i, t_i)

Nodes are counted from the data end: 0 = data, N = noise; a plan goes N = i_0 > i_1 > ... > 0. X_j
[B,D] is the teacher at node j and y_ij the jump of an Euler step from its state at node i, both in
units of x0, x/alpha. d is the distance from the straight line through the teacher's two ends
("chord"), or from X_j itself, so that d(X_j) = 0 ("l1", "l2"). gamma > 1 makes a step's error
count the more the later it comes. No state of the student enters: one run of the teacher gives all
costs, and the dynamic program the least total of every budget. Chen et al. 2024, arXiv:2405.11326,
and their code.

The arguments of `gits`; those that every search takes are `optimize.Given`:

    z        unit noise [B,*] on the device of the model and its words, or its shape with a seed
    budget   most evaluations; every number up to it has a plan
    solver   of the plans: any that asks the model once a step and draws no noise. The costs are
             those of Euler steps whatever it is, as published
    measure  d: "chord", "l1" or "l2"
    gamma    1.15 as published, 1.2 for Stable Diffusion, by distances of distributions. Nearest to
             the teacher was 1 (embedded model, Euler, 10 evaluations, mean PSNR of 64 samples: 27.8
             dB, at 1.15 25.4, at 1.3 21.3), the default

Evaluations per sample: T + A + N - 1 + the sum of the budgets; T and A are the teacher's and its
agreement's, as `oss` counts them; every plan is run once to know its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import metrics, solvers
from ..kernels import cost_matrix
from ..model import Model
from ..plan import Plan
from ..plan.given import within
from ..runtime.arguments import uploaded
from ..trajectories import Denoiser
from ._given import numbered, one_of
from ._jumps import table_of
from ._search import Search
from ._setting import Found, Setting
from ._shortest import shortest

BLOCK = 16  # samples whose costs are taken together


@numbered
def gits(
    model: Model,
    z: Tensor | Sequence[int],
    budget: int = 6,
    *,
    solver: str = "euler",
    measure: str = "chord",
    gamma: float = 1.0,
    **given: Any,
) -> Search:
    """Search time grids of 1..budget evaluations for `model`; the module's docstring, with which
    `help` goes on, says what each argument means, `optimize.Given` those of every search. Memory:
    3 N + 1 states [B,D]. Raises ValueError or TypeError, one sentence, for bad input.
    """
    one_of("gits", solver, "solver", solvers.SOLVERS)
    one_of("gits", measure, "measure", ("chord", "l1", "l2"))
    if within(gamma, 0.1, 10) is None:
        raise ValueError(f"gits: gamma={gamma!r:.60}; a number from 0.1 to 10 is accepted")
    own = {"budget": budget, "solver": solver, "measure": measure, "gamma": gamma}
    setting = Setting.of("gits", model, z, budget, given, own)
    t, p = setting.teacher.grid[::-1], 1.0 if measure == "l1" else 2.0
    make = lambda nodes: solvers.SOLVERS[solver](model, t[nodes])
    _check(solver, make(np.unique([setting.N, setting.N // 2, 0])[::-1]))

    def solve(ask: Denoiser, X: Tensor, first: Tensor) -> dict[int, Found]:
        x0 = torch.cat([ask(X[:, 1:-1], np.arange(1, setting.N)), first[:, None]], 1)
        jump, alpha = table_of(model, "euler", setting.teacher.grid), model.schedule.alpha(t)
        C = _costs(X, x0, jump, alpha, setting.root(p), p, measure == "chord")
        (C,) = ask.look(C)
        paths, found = shortest(C, budget, gamma), {}
        for m in setting.budgets:
            plan, at = make(paths[m]), np.arange(m)
            total = float(gamma**at @ C[paths[m][:-1], paths[m][1:]])
            found[m] = Found(paths[m], _error(setting, ask, plan, X), plan, {"cost": total})
        return found

    note, N = {"measure": measure, "gamma": float(gamma)}, setting.N
    return setting.search(note, N - 1 + sum(setting.budgets), 3 * N + 1, solve)


def _check(solver: str, plan: Plan) -> None:
    steps = len(plan.note["grid"]) - 1
    if plan.nfe != steps or plan.L:
        raise ValueError(
            f"gits: solver={solver!r} asks the model {plan.nfe} times in {steps} steps and draws "
            f"{plan.L} noises in one; a solver that asks once a step and draws none is accepted"
        )


def _costs(
    X: Tensor,
    x0: Tensor,
    jump: np.ndarray,
    alpha: np.ndarray,
    root: Tensor | None,
    p: float,
    chord: bool,
) -> Tensor:
    """c [N+1,N+1] float64 of the jumps i -> j; nothing else than j < i is a jump.

    X [B,N+1,D], x0 [B,N,D] of nodes 1..N; jump [2,N+1,N+1]; alpha [N+1]; root [B,D]: the elements'
    weights to 1/p.
    """
    N, wide = X.shape[1] - 1, torch.promote_types(X.dtype, torch.float32)
    weights = uploaded(torch.from_numpy(jump[:, 1:, :N].copy()), X.device)
    sizes = uploaded(torch.from_numpy(1.0 / alpha[:N]), X.device)
    below = torch.arange(1, N + 1, dtype=torch.int32, device=X.device)
    below = torch.stack([torch.zeros_like(below), below], 1)  # from i only to j < i
    total = torch.zeros((N + 1, N + 1), dtype=torch.float64, device=X.device)
    for begin in range(0, len(X), BLOCK):
        samples = slice(begin, begin + BLOCK)
        operands, at = [x.to(wide) for x in (X[samples, 1:], x0[samples])], X[samples, :N].to(wide)
        if root is not None:
            operands, at = [x * root[samples, None] for x in operands], at * root[samples, None]
        if chord:
            line = operands[0][:, -1:] - float(alpha[N] / alpha[0]) * at[:, :1]
            line = line / line.norm(dim=2, keepdim=True)
            operands, at = [_across(x, line) for x in operands], _across(at, line)
            end = at[:, :1] * (sizes[0] / sizes).to(wide)[:, None]  # of x0's end, times alpha_j
            offset = ((at - end).double() ** 2).mean(2).sqrt()
            at = end
        far = cost_matrix(operands, weights, at.contiguous(), below, p) ** (1 / p)
        if chord:
            far = far - offset[:, None]
        total[1:, :N] += (far * sizes).sum(0)
    return total / len(X)


def _across(x: Tensor, line: Tensor) -> Tensor:
    """What of x [B,n,D] is at right angles to the unit vector line [B,1,D]."""
    return x - (x * line).sum(2, keepdim=True) * line


def _error(setting: Setting, ask: Denoiser, plan: Plan, X: Tensor) -> float:
    """The plan's mean squared error at the teacher's end points; its evaluations are counted."""
    z = setting.z
    end = metrics.run(plan, setting.model, z, state_dtype=ask.wide, **setting.words)
    ask.count(plan.nfe * len(z))
    weight = None if setting.weight is None else setting.weight.reshape(z.shape)
    return metrics.mse(end, X[:, 0].reshape(z.shape), weight)
