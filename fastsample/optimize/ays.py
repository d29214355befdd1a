"""Align Your Steps: the times at which a model that is asked there alone follows the stochastic
process of all times best, for stochastic solvers and metrics of distributions.

    KL(process || steps) <= sum_i K(s_i, s_{i+1})
    K(s_i, s_j) = ∫ s^-3 E |D(x_s, s) - D(x_{s_i}, s_i)|² ds        from s_j to s_i

s = sigma/alpha, D is the model's x0, and x_s, x_{s_i} are one clean sample noised along one path.
The right side is what freezing D over a step costs in nats a sample, summed over its elements
(Girsanov; Sabour et al. 2024, arXiv:2404.14507, eq. 10). It adds up over steps, so one noised path
a sample through N + 1 levels gives K between any two of them, and dynamic programming the least sum
of exactly m steps, for every m at once.

**For whom.** The bound is that of a first-order stochastic solver's whole path (`euler_ancestral`,
`dpmpp_2m_sde`, `ddim` with eta = 1), for metrics of distributions. Deterministic solvers judged by
PSNR may lose by it: `fit` is for these. Measured on the embedded model at 10 steps, 256 noises
(bench/bench_ays.py), PSNR of dpmpp_2m to the teacher and Fréchet distances on classifier features,
0.30 for the teacher:

                             dpmpp_2m         dpmpp_2m_sde   euler_ancestral
    Karras' times            30.7 dB  0.34    0.52           2.00
    power=3                  19.6     0.54    0.53           1.25
    power=3, "descent"       21.9     0.37    0.34           0.93
    power=3 from 0.002       16.8     1.96    1.82           3.27
    power=2                  28.7     0.25    0.30           0.93
    power=1 from 0.01        36.4     0.30    0.40           1.27

Other 256 noises move these distances by about 0.1 (Karras' and power=2: 0.39 and 0.32, 2.16 and
1.03 for the stochastic two): differences as small say nothing. Look at `held_out`, which shows both
metrics.

**Traps.** `power` and `sigma_min` decide more than the optimiser does. The integral grows without
end as sigma_min goes to 0: power=3 from 0.002 spends its steps below s = 1 and is bad everywhere.
The least bound is not the least distance, for a path is more than its end: the paper stops its
descent early, by eye, and the exact optimum goes past that point. power=2 is the better choice
above, though its integral is no bound. With guidance the teacher's samples are no longer what the
guided model's process, noised, begins from: the paper's large models are found so all the same.

The arguments of `ays`; those that every search takes are `optimize.Given`:

    z            noise that the teacher's samples are made from; beside data= its shape and words
    budget       most evaluations; every number up to it has a plan
    solver       a key of solvers.SOLVERS, stochastic or not, that makes plans on the times found,
                 grid[indices[m]], which do not depend on it; one of two evaluations a step answers
                 the budgets it can spend
    method       "exact": the least bound on the grid. "descent": the paper's, from Karras' times
                 (evenly spaced t of a DiscreteVP): 10 steps by coordinate descent, then 20 and 40
                 by halving, other numbers read off the longest list; never better than "exact"
    data         clean samples [B,*], which follow z's words; None: the teacher's end points
    sigma_min    s at which the bound ends; the last step runs from the knot before to sigma = 0.
                 None: 0.03, or the schedule's smallest where that is larger
    power        of 1/s in the integral: 3 is the bound, a smaller one gives noise more steps
    c            standard deviation of the Gaussian data whose integrand weighs the levels between
                 two of the grid (the paper's importance sampling)
    steps        N, levels evenly spaced in log s that knots are chosen from; at 80 the bound of 10
                 steps on Gaussian data is 0.3 % above that of the best times of all
    sweeps       most rounds of a descent: fewer are the paper's early stop
    features     tensor [n,*] -> [n,F], what the Fréchet distance of `held_out` is taken over; None:
                 the elements themselves
    teacher      its grid is not the one searched; beside data= it is asked for held_out alone

Evaluations per sample: N + 1, and the teacher's where it is asked. The paths' noise is drawn from
the seed z is drawn from, else from z. Memory: paths of 16 samples, and the teacher's end points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import grids, metrics, solvers
from ..model import Model
from ..plan import Plan
from ..plan.given import real, within
from ..plan.text import named
from ..runtime import arguments
from ..runtime.drive import bar
from ..runtime.sources import seed_of
from ..schedules import DiscreteVP, Schedule
from ..trajectories import Denoiser, visits
from . import _klub, _teacher
from ._frechet import frechet
from ._given import cut, numbered, one_of, whole
from ._search import Search, figure
from ._setting import Found, Setting, _known
from ._shortest import shortest

FOR = "for stochastic solvers and metrics of distributions, not PSNR of deterministic solvers"
SIGMA_MIN = 0.03
NATS = 3.0  # the power with which the integral is a bound


@dataclass(frozen=True, eq=False, repr=False)
class Aligned(Search):
    """A `Search` whose `error` is the bound, in nats a sample, or the integral of another power.

    frechet   {M: {"found", "Karras", "by_hand": float}}   Fréchet distances, to the samples that
                                        the bound was taken over, of the end points from held-out
                                        noise: of the plan, of its solver on Karras' times, and of
                                        the plan of `compared`; empty where none was given
    """

    frechet: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        bounds = ", ".join(f"{m}: {self.error[m]:.3g}" for m in sorted(self.plans))
        power = self.plan.note["found"]["power"]
        kind = "bound in nats" if power == NATS else f"integral with s^-{power:g}"
        shown = [
            f"{m}: {self.compared[m]}, Fréchet distance "
            + ", ".join(f"{value:.4g} {word}" for word, value in self.frechet[m].items())
            for m in sorted(self.frechet)
        ]
        return (
            f"Aligned({named(self.plan)}, {FOR}; {kind} by evaluations {{{bounds}}}, "
            f"{'; '.join(shown) or 'not compared with schedules made by hand'}, "
            f"{self.nfe:g} evaluations a sample, {self.samples} samples, {self.seconds:.1f} s)"
        )


@numbered
def ays(
    model: Model,
    z: Tensor | Sequence[int],
    budget: int = 10,
    *,
    method: str = "exact",
    solver: str = "dpmpp_2m_sde",
    data: Tensor | None = None,
    sigma_min: float | None = None,
    power: float = NATS,
    c: float = 0.5,
    steps: int = 80,
    sweeps: int = 300,
    features: Callable[[Tensor], Tensor] | None = None,
    **given: Any,
) -> Aligned:
    """Search times of 1..budget evaluations for stochastic solvers and metrics of distributions;
    the module's docstring, with which `help` goes on, says what each argument means,
    `optimize.Given` those of every search. ValueError or TypeError, one sentence, for bad input.
    """
    _check(method, solver, power, c, budget, steps, sweeps, features)
    own = {"budget": budget, "method": method, "solver": solver, "data": data, "c": c}
    own |= {"sigma_min": sigma_min, "power": power, "steps": steps, "sweeps": sweeps}
    setting = _Noised.of("ays", model, z, 1, given, own)  # more than the teacher's are accepted
    setting.budgets = range(1, budget + 1) if setting.given.all_budgets else [budget]
    setting.data = _clean(setting, data)
    t, level = _klub.nodes_of(model.schedule, _lowest(model.schedule, sigma_min), steps)
    setting.teacher = replace(setting.teacher, grid=np.append(t[:0:-1], model.schedule.t_zero))
    make = lambda nodes: solvers.SOLVERS[solver](model, setting.teacher.grid[steps - nodes])
    asked = _asked(make, setting, budget)
    seed = seed_of(setting.z) if setting.note["seed"] is None else setting.note["seed"]

    def solve(ask: Denoiser, x0: Tensor) -> dict[int, Found]:
        root = setting.root(2.0)
        C = _klub.differences(ask, x0, setting.z, setting.words, t, seed, root)
        K = _klub.intervals(C, level, power, c)
        if method == "exact":
            paths = shortest(K, budget)
        else:
            paths = _klub.descent(K, _begin(model.schedule, t, level), budget, sweeps)
        found = {n: paths[m] for m, n in asked.items()}
        return {n: Found(at, _klub.total(K, at), make(at), {}) for n, at in found.items()}

    note = {"for": FOR, "search": method, "power": float(power), "c": float(c)}
    source = "the teacher" if setting.data is None else "data"
    note |= {"sigma_min": float(np.exp(-level[0])), "samples_of": source, "draws": seed}
    held = 1 + -(-2 * len(t) * min(_klub.BLOCK, len(setting.z)) // len(setting.z))
    search = setting.search(note, len(t), held, solve)
    search = Aligned(**{item.name: getattr(search, item.name) for item in fields(search)})
    return search if setting.held_out is None else setting.judged(search, features)


def _check(
    method: str, solver: str, power: float, c: float, budget: int, steps: int, sweeps: int, features
) -> None:
    """Refuse arguments of `ays` alone."""
    one_of("ays", method, "method", ("exact", "descent"))
    one_of("ays", solver, "solver", solvers.SOLVERS)
    whole("ays", budget=budget, steps=steps, sweeps=sweeps)
    for name, value in (("power", power), ("c", c)):
        if (real(value) or 0) <= 0:
            raise ValueError(f"ays: {name}={value!r:.60}; a number above 0 is accepted")
    if not (features is None or callable(features)):
        found = f"a {type(features).__name__}"
        raise TypeError(f"ays: features is {found}; a function of a tensor, or None, is accepted")
    least = max(budget, _klub.STAGES[0] if method == "descent" else 1)
    if steps < least:
        raise ValueError(f"ays: steps={steps} for budget={budget}; at least {least} is accepted")


def _lowest(schedule: Schedule, sigma_min: float | None) -> float:
    """The s at which the bound ends, or a sentence."""
    low, high = np.exp(-schedule.half_log_snr(np.array([schedule.t_min, schedule.t_finite])))
    least = max(low, min(SIGMA_MIN, high / 2)) if sigma_min is None else sigma_min
    least = within(least, low)
    if least is None or least >= high:
        raise ValueError(
            f"ays: sigma_min={sigma_min!r:.60}; a sigma/alpha of the schedule from {low:.6g} and "
            f"below {high:.6g}, or None, is accepted"
        )
    return least


def _asked(make: Callable[[np.ndarray], Plan], setting: Setting, budget: int) -> dict[int, int]:
    """{m: evaluations of the solver's plans of m steps} of the budgets it can spend; a sentence
    where there are none.
    """
    even = {m: np.linspace(setting.N, 0, m + 1).astype(np.int64) for m in range(1, budget + 1)}
    spent = {m: make(nodes).nfe for m, nodes in even.items()}
    asked = {m: n for m, n in spent.items() if n in setting.budgets}
    if not asked:
        listed = ", ".join(str(n) for n in spent.values())
        raise ValueError(f"ays: budget={budget}; the solver's plans spend {listed}")
    return asked


def _clean(setting: Setting, data: Tensor | None) -> Tensor | None:
    """The clean samples in z's dtype, or a sentence; also for fewer than a covariance needs."""
    z, held_out = setting.z, setting.held_out
    if held_out is not None and min(len(z), len(held_out)) < 2:
        found = f"{len(held_out)} noises of held_out beside {len(z)} of z"
        raise ValueError(f"ays: {found}; at least 2 of each, for a covariance, are accepted")
    if data is None:
        return None
    found = f"a {type(data).__name__}"
    if isinstance(data, Tensor):
        found = f"{str(data.dtype)[6:]} {list(data.shape)} on {data.device}"
        if data.shape == z.shape and data.is_floating_point() and data.device == z.device:
            if data.isfinite().all():
                return data.detach().to(z)
            found = "not finite throughout"
    raise ValueError(
        f"ays: data is {found} beside noise {list(z.shape)} on {z.device}; finite floating samples "
        "of its shape there are accepted"
    )


def _begin(schedule: Schedule, t: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Nodes [11] of the schedule that a descent begins at: Karras' (rho = 7) from the largest
    finite s down, or evenly spaced times of a table.
    """
    share, N = np.linspace(0, 1, _klub.STAGES[0] + 1), len(t) - 1
    low, high = level[0], schedule.half_log_snr(schedule.t_finite)
    if isinstance(schedule, DiscreteVP):
        wanted = schedule.half_log_snr(schedule.t_finite + share * (t[0] - schedule.t_finite))
    else:
        first, last = np.exp(-high / 7), np.exp(-low / 7)
        wanted = -7 * np.log(first + share * (last - first))
    return _klub.apart(np.rint(N * (low - wanted) / (low - high)).astype(np.int64))


@dataclass
class _Noised(Setting):
    """A setting whose clean samples are noised forward: `data` [B,*], or the teacher's end points.
    clean [B,D]: those samples, once they are known.
    """

    data: Tensor | None = None
    clean: Tensor | None = None

    def _solved(self, evaluations: int, solve: Callable) -> tuple[dict[int, Found], float]:
        """The answers, and the evaluations per sample. Beside data the teacher is settled only
        where the plans are compared.
        """
        z, name, walks = self.z, self.where, self.data is None
        rows = lambda: len(z) * (walks * self.teacher.plan.nfe + evaluations)
        shows = bar(name, self.shown, rows(), unit=" evaluations", desc=name)
        with torch.no_grad(), shows as shown:
            asked, t = shown and shown.update, self.teacher.grid[::-1].copy()
            ask = Denoiser(self.model, t, z, dtype=self.dtype, asked=asked, **self.words)
            if walks or self.held_out is not None:
                self.teacher = _teacher.settle(name, self.teacher, ask, z, self.words, self.weight)
                _known(shown, ask.rows + rows(), self.teacher.agreement)
            self.clean = self._ends(ask) if walks else self.data.flatten(1)
            return solve(ask, self.clean), ask.rows / len(z)

    def _ends(self, ask: Denoiser) -> Tensor:
        """The teacher's end points [B,D]."""
        plan, z, words = self.teacher.plan, self.z, self.words
        ends = torch.empty((len(z), z[0].numel()), dtype=ask.wide, device=self.device)

        def visit(samples: slice) -> None:
            given = cut(words, samples) | {"state_dtype": ask.wide}
            for _, _, x, f in visits(plan, ask.model, z[samples], **given):
                if f is None:
                    ends[samples] = x.flatten(1).to(ends)

        chunks = arguments.chunks(self.where, len(z), words["batch_size"])
        words["ranks"].deal(chunks, visit, lambda samples: ends[samples])
        ask.count(plan.nfe * len(z))
        return ends

    @torch.no_grad()
    def judged(self, search: Aligned, features: Callable | None) -> Aligned:
        """The search with the Fréchet distances of what the held-out noise ends in; inf for a run
        that does not stay finite.
        """
        every, root = torch.arange(search.samples, device="cpu"), self.root(2.0)
        at = torch.arange(len(self.held_out), device="cpu") % search.samples
        words = {**cut(self.words, at), "ranks": self.words["ranks"]}
        words["state_dtype"] = torch.promote_types(self.dtype, torch.float32)

        def seen(x: Tensor, of: Tensor) -> Tensor:
            x = (x if features is None else features(x)).flatten(1).cpu().double()
            return x if features is not None or root is None else x * root.cpu()[of]

        reference = seen(self.clean.reshape(self.z.shape).to(self.z.device), every)

        def distance(plan: Plan) -> float:
            try:
                end = metrics.run(plan, self.model, self.held_out, **words)
            except FloatingPointError:
                return math.inf
            return frechet(seen(end, at), reference)

        solver, spent, found, noted = search.plan.note["solver"], 0, {}, {}
        for m, plan in search.plans.items():
            karras = grids.karras(self.model.schedule, len(search.indices[m]) - 1)
            plans = {"found": plan, "Karras": solvers.SOLVERS[solver](self.model, karras)}
            plans["by_hand"] = search.compared[m].plan
            found[m] = {word: distance(each) for word, each in plans.items()}
            spent += sum(each.nfe for each in plans.values()) * len(at)
            said = {word: figure(value) for word, value in found[m].items()}
            noted[m] = plan.with_note(found={**plan.note["found"], "frechet": said})
        spent = search.compared_nfe + spent / search.samples
        return replace(search, plans=noted, frechet=found, compared_nfe=spent)
