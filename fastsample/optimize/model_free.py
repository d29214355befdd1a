"""Times for a model that nobody has calibrated: the least bound on the error of a solver's end
point, found from the noise schedule alone, in milliseconds. No model is asked.

    x_n   = (sigma_n / sigma_0) x_0 + sigma_n sum_k m_k sum_i J_ik
    bound = sum_i sqrt(sum_k (e_k J_ik)^2)              e = sigma^p / alpha

x_n is the state at t_min, m_k the model's x0 at time k. J_ik is how step i weighs it: the integral
over the step of e^lambda L_ik, lambda = ln(alpha/sigma), L_ik the Lagrange basis of the outputs
that the solver's step reads (or its own shortcut). What is assumed of the model is that m_k lies
within eta e_k of the x0 that the run should end in, alpha and sigma in variance-preserving units at
that lambda whatever the schedule, as x0 has none; eta moves no optimum. p = 1: in units of eps the
error is the same at every level (Xue et al. for models of pixels); p = 2: it falls with sigma (for
models of latents).

The bound is that of Xue et al. 2024 (arXiv:2402.17376) and of their code, with changes. They add
what all steps say of an output before its magnitude is taken, sum_k e_k |sum_i J_ik|, so that steps
may cancel one another's errors; up to 7 evaluations their first three may not. Here none may,
unless `alone` says so: the sum is smooth and found sooner, and the times are better (dpmpp_2m on
the embedded model at 5, 8, 10 evaluations, mean PSNR of 64 samples: 27.2, 34.6, 38.4 dB; with
theirs 26.9, 31.4, 33.7; on Karras' times 23.1, 27.9, 31.4). Each solver has its own J, UniPC's with
its corrector, where they take the predictor of orders 1, 2, 3, ..., 3, 2, 1 for all. Gradients are
in closed form.

p = 2 leaves the last label high: a first-order step from 0.04 or so to 0. Data with detail as fine
as that (a mixture of standard deviation 0.05, 10 evaluations: 40.7 dB, Karras 50.3) need p = 1
(53.0), which is worse where there is none (the embedded model: 25.8, 32.8, 36.0).

A run begins at the schedule's largest level, as published, but at sigma/alpha = `sigma_max` where
that is lower: none of theirs is above 157, and the bound cannot tell, since it knows nothing of
what a first label costs and falls with any lower one. It ends at t_min; the plan goes from its last
time to sigma = 0 by the same step of first order.

lambda_k = lambda_0 + (lambda_n - lambda_0) cumsum(w), w a softmax of at least 1e-3/n each: any n
numbers are a grid. L-BFGS on the logarithm of the bound begins at the two best of the grids made by
hand with the same ends; the best is kept. Deterministic.
"""

from __future__ import annotations

import numpy as np

from .. import solvers
from ..grids import SAME_LEVEL
from ..metrics import hand_made
from ..model import Model
from ..plan import Plan
from ..plan.given import integer, real
from ..schedules import Schedule
from ._bound import STEPS, Bound
from ._given import numbered, one_of, whole

STARTS = 2  # hand-made grids that the search begins at


@numbered
def model_free(
    model: Model | Schedule,
    n: int,
    solver: str = "dpmpp_2m",
    *,
    prediction: str | None = None,
    power: float = 2.0,
    sigma_max: float = 80.0,
    alone: int | None = None,
) -> Plan:
    """The plan of n evaluations of the solver on the times of least bound.

    model      a Model, or a schedule together with prediction=
    n          evaluations
    solver     ddim, euler, dpmpp_2m, dpmpp_3m or unipc
    power      p above
    sigma_max  largest sigma/alpha that the noise is labelled with
    alone      how many steps, from the first, do not cancel; None: all. The authors' code has 3 up
               to 7 evaluations and 0 from 8 on

    note["found"] has the bound, and the least of the grids made by hand with its name. ValueError
    or TypeError, one sentence, for bad input; ImportError without scipy.
    """
    one_of("model_free", solver, "solver", STEPS)
    schedule = _checked(model, n, power, alone)
    usual = _usual(schedule, n, sigma_max)
    levels = {name: schedule.half_log_snr(times) for name, times in usual.items()}
    bound = Bound(n, solver, float(power), n if alone is None else min(int(alone), n))
    ranked = sorted((bound(knots)[0], name) for name, knots in levels.items())
    value, name = ranked[0]
    found = {"method": "model_free", "power": float(power), "sigma_max": float(sigma_max)}
    found |= {"alone": bound.alone, "evaluations": 0, "by_hand": {"grid": name, "bound": value}}
    tried = [(value, levels[name]), *(bound.least(levels[name]) for _, name in ranked[:STARTS])]
    value, knots = min(tried, key=lambda one: one[0])
    inner = schedule.time(knots[1:-1])
    times = np.concatenate([usual[name][:1], inner, [schedule.t_zero]])
    plan = solvers.SOLVERS[solver](model, times, prediction=prediction)
    return plan.with_note(found={**found, "bound": value})


def _checked(model: Model | Schedule, n: int, power: float, alone: int | None) -> Schedule:
    """The schedule; refuses arguments of `model_free` alone."""
    schedule = model.schedule if isinstance(model, Model) else model
    if not isinstance(schedule, Schedule):
        found = f"the model is a {type(model).__name__}"
        raise TypeError(f"model_free: {found}; an fs.Model, or a schedule, is needed")
    whole("model_free", n=n)
    if (found := real(power)) is None or found < 0.0:
        raise ValueError(f"model_free: power={power!r:.60}; a number of at least 0 is accepted")
    if alone is not None and (integer(alone) is None or alone < 0):
        why = f"alone={alone!r:.60}; None, or a whole number of at least 0, is accepted"
        raise ValueError(f"model_free: {why}")
    return schedule


def _usual(schedule: Schedule, n: int, sigma_max: float) -> dict[str, np.ndarray]:
    """{name: times [n+1]} of the grids made by hand from the first label to t_min."""
    top, low = np.exp(-schedule.half_log_snr(np.array([schedule.t_finite, schedule.t_min])))
    if (real(sigma_max) or 0.0) <= low:
        why = f"sigma_max={sigma_max!r:.60}; a number above the schedule's least, {low:g},"
        raise ValueError(f"model_free: {why} is accepted")
    whole_range = schedule.t_finite == schedule.t_max and top <= sigma_max * (1.0 + SAME_LEVEL)
    start = None if whole_range else min(sigma_max, float(top))
    grids = hand_made(schedule, n, [start])
    return {name: times for name, times in grids.items() if times[-1] == schedule.t_min}
