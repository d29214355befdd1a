"""What stands around `k_sample` in a host: the sigmas that a plan runs on, what its noise is scaled
by, the same solver on other sigmas, and a denoiser as a Model to search on.

    model = k_model(denoiser, EDM(0.03, 14.6))          # or Flow(3.0), for the state of flow models
    plan = fs.optimize.search(model, z, [6]).plan
    x0 = k_sample(plan, denoiser, k_scale(plan) * noise, state=k_state(plan))

The two states of a denoiser, "sigma" and "flow", are k_sample's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..grids import check, from_sigmas
from ..grids.points import on_flow
from ..model import Model
from ..plan import Plan
from ..plan.given import reals
from ..plan.provenance import LEARNED
from ..runtime import outputs
from ..schedules import EDM, Flow, Schedule, from_json
from ..solvers import SOLVERS
from .denoised import Denoised, denoised

ALIKE = 1e-5  # relative: levels that were float32 are the same levels


def k_model(denoiser: Callable, schedule: Schedule, *, model_id=None, **extra) -> Model:
    """A Model of denoiser(x, sigma [B], **extra, **cond) -> x0 [B,*], as samplers of k-diffusion
    and ComfyUI are handed it, for searches.

    schedule: EDM(sigma_min, sigma_max) for x = x0 + sigma·eps; Flow(shift) for
    x = (1 - sigma)·x0 + sigma·eps, with the shift that the model was trained or is run with, along
    which grids are even. Others are refused with a ValueError. model_id: as Model takes it.
    """
    if not isinstance(schedule, (EDM, Flow)):
        raise ValueError(
            f"k_model: schedule is {schedule!r:.80}; schedules.EDM(sigma_min, sigma_max) for "
            "x = x0 + sigma eps, or schedules.Flow(shift), is accepted"
        )

    if not callable(denoiser):
        raise TypeError(
            f"k_model: denoiser is a {type(denoiser).__name__}; a callable(x, sigma [B]) -> x0 is "
            "accepted"
        )

    def ask(x, sigma, **cond):
        return outputs.only(denoiser(x, sigma, **extra, **cond))

    flow = isinstance(schedule, Flow)
    return Model(ask, schedule, "x0", time=1 if flow else None, model_id=model_id)


def k_state(plan: Plan) -> str:
    """The denoiser's state that a plan is for: "flow" where its own x is (1 - sigma)·x0 + sigma·eps
    in every row, or where it begins at alpha = 0, which no sigma/alpha says; else "sigma".
    """
    _plan("k_state", plan)
    flow = on_flow(plan.alpha[1:], plan.sigma[1:]) or plan.alpha[1] == 0.0
    return "flow" if flow else "sigma"


def k_sigmas(plan: Plan, state: str | None = None) -> np.ndarray:
    """The denoiser's sigma at which each of the n steps begins, before churn, and that of the end:
    float64 [n+1], what ComfyUI calls SIGMAS. state: by default `k_state`'s. Raises ValueError for a
    plan that k_sample does not run.
    """
    own = _own("k_sigmas", plan, state)
    return np.append(own.before[[*own.starts.values()]], own.levels[-1])


def k_scale(plan: Plan, state: str | None = None) -> float:
    """What unit noise is multiplied by to be k_sample's x: sigma where the plan begins, times the
    amplitude that a search found; 0 for a plan that begins from an image.
    """
    return _own("k_scale", plan, state).scale


def k_remake(
    plan: Plan, sigmas: Sequence[float], state: str | None = None, *, other: bool = True
) -> Plan:
    """The plan for a run on these sigmas [n+1] of its denoiser, compared to 1e-5 with `k_sigmas`:
    all of them are the plan itself; their tail is `plan.remake(start=)`, for x as it stands there;
    others are the same solver made on them, for x as it stands at the first, or refused with
    other=False.

    Raises ValueError, one sentence, for levels that do not fall, for rows that were found for their
    own levels, and as `Plan.remake` does.
    """
    _plan("k_remake", plan)
    state = state or k_state(plan)
    own, given = k_sigmas(plan, state), reals(sigmas)
    if given is None or given.ndim != 1 or len(given) < 2:
        raise ValueError(
            f"k_remake: sigmas = {sigmas!r:.60}; a list of two or more falling noise levels is "
            "accepted"
        )
    at = len(own) - len(given)
    if at >= 0 and np.allclose(own[at:], given, rtol=ALIKE, atol=0.0):
        return plan.remake(at) if at else plan
    found = str(plan.note.get("solver")) not in SOLVERS or bool(plan.note.keys() & LEARNED)
    if found or not other:
        rows = ", whose rows were found for their own levels," if found else ""
        raise ValueError(
            f"k_remake: sigmas = {_listed(given)}, and the plan{rows} runs on {_listed(own)}; "
            "the plan's own, or their tail, are accepted"
        )
    schedule = from_json(plan.note["schedule"])
    times = _times(schedule, given, state)
    return plan.with_note(grid=times.tolist()).remake(0)


def _plan(where: str, plan: object) -> None:
    if not isinstance(plan, Plan):
        raise TypeError(f"{where}: plan is a {type(plan).__name__}; a fastsample.Plan is accepted")


def _own(where: str, plan: Plan, state: str | None) -> Denoised:
    """The plan for a denoiser of this state, by default its own."""
    _plan(where, plan)
    return denoised(plan, state or k_state(plan), None, None)


def _times(schedule: Schedule, sigmas: np.ndarray, state: str) -> np.ndarray:
    """The schedule's times of these sigmas of a denoiser."""
    if isinstance(schedule, Flow):
        return from_sigmas(schedule, sigmas if state == "flow" else sigmas / (1.0 + sigmas))
    if state == "flow":
        with np.errstate(divide="ignore"):
            sigmas = sigmas / np.maximum(1.0 - sigmas, 0.0)
    return check(schedule, from_sigmas(schedule, sigmas))


def _listed(sigmas: np.ndarray) -> str:
    """The first levels and the last; all of up to three."""
    told = [f"{v:.4g}" for v in sigmas]
    told = told if len(told) <= 3 else [*told[:2], "...", told[-1]]
    return f"[{', '.join(told)}] ({len(sigmas)})"
