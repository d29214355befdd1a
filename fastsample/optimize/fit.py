"""Times and coefficients found together: a dynamic program over the times of a fine grid whose
every jump solves for its row in closed form. No gradient is taken, and none is needed of the model.

    x' = w_0 x + sum_l w_l m_l
    w  = argmin_w sum_b | w_0 x_b + sum_l w_l m_bl - X_b[j] |^2

Nodes are counted from the data end: 0 = data, N = noise. X[j] [B,D] is the teacher at node j; x the
state that this path itself really reaches (fitted to the teacher's states, the errors of rows would
add up), m_l its newest predictions, as x0. A jump from i to j costs what its least squares leave.
At every node the `beam` cheapest paths of k evaluations are kept, each with its own state and
predictions; those that stand at the data end after k evaluations answer budget k. Paths may begin
at any node (`start`), so the label of the noise is found as well. One search answers every budget.

The normal equations are float64 sums over blocks of 16 samples, columns scaled to unit length, with
a ridge of 1e-9 beside the unit diagonal. A row whose weights of predictions add up to more than 20
in magnitude would blow up what the model says otherwise on other noises: it has a hundredfold
ridge, again and again, until it does not.

The arguments of `fit`; those that every search takes are `optimize.Given`, z and start are `oss`'s:

    budget       most evaluations; every number up to it has a plan
    rows         what a row may be. "free": any weights; the plan leaves the schedule, so it starts
                 from noise only. "consistent": rows that reach the schedule's levels wherever
                 predictions are exact. Or a solver that asks the model once a step and draws no
                 noise: its own rows, so that times alone are searched
    amplitudes   factors of the start noise that are tried at every label; each costs N evaluations
    history      most predictions that a row reads, the newest included; a solver has its own
    beam         paths kept at a node; 1 costs about two fifths of 3
    aggregate    what a jump costs over the samples, and what a row is fitted to: "mean" of the
                 squared errors; "log": the mean of their logarithms, by samples weighted with their
                 inverse errors, three times; "median" of errors of the mean's row. A mean follows
                 the worst samples: on a mixture of 3 in 16 dimensions, 16 noises, 4 evaluations,
                 "log" was 7 to 17 dB better on others (tests/test_robust.py). On the embedded model
                 it was not (beam 1, 6 evaluations, 48 others, mean PSNR: from 16 noises 37.2 dB by
                 the mean and 34.1 by "log", from 8 noises 35.9 and 35.1, of another seed 35.6 and
                 36.9): look at `held_out`
    judged       share of the samples that no row is fitted to, and that alone say what a jump
                 costs: 0 to below 1, rounded to samples

Evaluations per sample beside the teacher's, as `oss` counts them: M(N - (M-1)/2) at most for every
budget up to M with a free start and beam 1, and about beam times that.

Least squares over a sampler's buffer are what Bespoke solvers and S4S learn by gradient (Shaul et
al. 2023, arXiv:2310.19075; Frankel et al. 2025, arXiv:2502.17423).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from .. import solvers
from ..model import Model
from ..plan.given import real, reals
from ..trajectories import Denoiser
from ._families import ROWS, rows_of, words_of
from ._given import numbered, one_of, whole
from ._paths import AGGREGATE, Options, Path, Paths
from ._search import Search
from ._setting import Found, Setting


@numbered
def fit(
    model: Model,
    z: Tensor | Sequence[int],
    budget: int = 6,
    *,
    rows: str = "free",
    history: int = 9,
    beam: int = 3,
    start: str = "free",
    amplitudes: Sequence[float] = (1.0,),
    aggregate: str = "mean",
    judged: float = 0.0,
    **given: Any,
) -> Search:
    """Search times and rows of 1..budget evaluations on `model`; the module's docstring, with which
    `help` goes on, says what each argument means, `optimize.Given` those of every search. Memory:
    (N+1) + beam N (history+3) states [B,D] at most; nothing is written to disk. Raises ValueError
    or TypeError, one sentence, for bad input.
    """
    scales = _checked(rows, start, aggregate, history, beam, judged, amplitudes)
    own = {"budget": budget, "rows": rows, "history": history, "beam": beam, "start": start}
    own |= {"amplitudes": scales, "aggregate": aggregate, "judged": judged}
    setting = Setting.of("fit", model, z, budget, given, own)
    apart = min(round(judged * len(setting.z)), len(setting.z) - 1)
    most = history if rows in ROWS else budget
    options = Options(setting.budgets, start, scales, most, beam, aggregate, apart)
    return fit_with(setting, rows, options)


def fit_with(setting: Setting, rows: str, options: Options) -> Search:
    """`fit` of what has been checked."""
    model, t = setting.model, setting.teacher.grid[::-1]
    family = rows_of(rows, model, t)
    if setting.N > 1:
        family([2, 1], 2)  # refuses a solver before the model is asked

    def solve(ask: Denoiser, X: Tensor, first: Tensor) -> dict[int, Found]:
        paths = Paths(options, ask, family, setting.z, X, setting.root(2))
        paths.fill()
        return {
            m: _found(*paths.ends[m], model, rows, t)
            for m in sorted(paths.ends)
            if m in options.budgets
        }

    names = ("start", "history", "beam", "aggregate", "judged")
    note = {"rows": rows} | {name: getattr(options, name) for name in names}
    evaluations, states = options.evaluations(setting.N), options.states(setting.N)
    return setting.search(note, evaluations, states, solve)


def _checked(
    rows: str, start: str, aggregate: str, history: int, beam: int, judged: float, amplitudes: Any
) -> list[float]:
    """Refuse arguments of `fit` alone; the amplitudes as a list."""
    one_of("fit", rows, "rows", [*ROWS, *solvers.SOLVERS])
    one_of("fit", start, "start", ("fixed", "free"))
    one_of("fit", aggregate, "aggregate", AGGREGATE)
    whole("fit", history=history, beam=beam)
    if (share := real(judged)) is None or not 0 <= share < 1:
        why = f"fit: judged={judged!r:.60}; a share of at least 0 and below 1 is accepted"
        raise ValueError(why)
    scales = reals(amplitudes)
    if (
        scales is None
        or scales.ndim != 1
        or not scales.size
        or not ((scales > 0) & (scales < np.inf)).all()
    ):
        raise ValueError(
            f"fit: amplitudes={amplitudes!r:.60}; one or more finite factors above 0 are accepted"
        )
    return scales.tolist()


def _found(path: Path, cost: float, model: Model, rows: str, t: np.ndarray) -> Found:
    """The answer of a path that has come to the data end."""
    nodes = np.array(path.nodes)
    if rows in ROWS:
        words = {"weights": [row.tolist() for row in path.rows], "rows": rows}
        plan = solvers.fitted(model, t[nodes], **words)
    else:
        plan = solvers.SOLVERS[rows](model, t[nodes], **words_of(rows))
    # Row 0 scales the unit noise.
    plan = replace(plan, M=np.concatenate([plan.M[:1] * path.amplitude, plan.M[1:]]))
    weights = [float(np.abs(row[1:]).sum()) for row in path.rows]
    note = {"amplitude": path.amplitude, "weights": weights, "defect": plan.consistency()}
    return Found(nodes, cost, plan, note)
