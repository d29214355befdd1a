"""Experts: a plan that asks one model where there is much noise and another where there is less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..grids import parted
from ..plan import Plan
from ..plan.given import between, integer
from ..schedules import from_json
from ._build import ROUNDED


def experts(
    plan: Plan,
    boundary: float | None = None,
    *,
    level: float | None = None,
    steps: Sequence[int] | None = None,
) -> Plan:
    """The same rows, each asking by where the state stands: model 0, the high-noise one, from the
    boundary up, model 1, the low-noise one, below it.

        plan = solvers.experts(solvers.unipc(model, grid), boundary=0.875)
        x0 = Sampler(plan, [high, low])(noise=z)

    boundary  a share of the training timesteps, between 0 and 1: of the times that a model is told
              by time=1 (`schedule.label`; sigma itself on Flow), over the largest. Wan 2.2 switches
              at .875 (from text) and .9 (from an image)
    level     in its place: the noise level sigma/alpha
    steps     (high, low): so many steps on either side instead of the plan's own. The grid is read
              as `grids.starting_at` reads it and gets a point at the boundary, where the low-noise
              model takes over

    What a solver keeps from one row to the next crosses the boundary: both models are one function
    to it, of one schedule, prediction and time, which are the plan's. `remake` keeps the boundary,
    and an image noised below it is the low-noise model's alone. ValueError, one sentence, for a
    plan with no row below the boundary; `remake`'s too where steps= makes the plan again.
    """
    words = _words(plan, boundary, level)
    if steps is not None:
        plan, words["steps"] = _in_steps(plan, words["edge"], steps)
    made = asked(plan, words)
    if not (made.call == 1).any():
        raise ValueError(
            f"experts: no row of the plan stands below the boundary, sigma/alpha = "
            f"{np.exp(words['edge']):.6g}; one that leaves the low-noise model a row is accepted"
        )
    return made


def _words(plan: Plan, boundary: float | None, level: float | None) -> dict:
    """The boundary as it was given, and as edge, ln(sigma/alpha)."""
    if (boundary is None) == (level is None):
        raise ValueError(
            f"experts: boundary={boundary!r:.40}, level={level!r:.40}; one of them is accepted: "
            "the share of the training timesteps, or the noise level sigma/alpha"
        )
    if plan.call.max() > 0 and "experts" not in plan.note:
        raise ValueError(
            f"experts: the plan asks model {plan.call.max()} already; one that asks model 0 alone "
            "is accepted"
        )
    if level is None:
        boundary = between("experts: boundary", boundary, 0.0, 1.0)
        edge = _log_level(plan, boundary)
    else:
        level = between("experts: level", level)
        edge = float(np.log(level))
    return {"boundary": boundary, "level": level, "edge": edge}


def asked(plan: Plan, words: dict) -> Plan:
    """The plan with its calls dealt to both models, and the words that say how in its note."""
    with np.errstate(divide="ignore"):
        at = np.log(plan.sigma) - np.log(plan.alpha)
    # the point that steps= put at the boundary is the low-noise model's
    above = at >= words["edge"] + (ROUNDED if "steps" in words else -ROUNDED)
    own = plan.note.get("model") or {}
    note = {**plan.note, "experts": words, "models": [own, {**own, "model_id": "unknown"}]}
    return replace(plan, call=np.where(plan.call < 0, -1, np.where(above, 0, 1)), note=note)


def _log_level(plan: Plan, boundary: float) -> float:
    """ln(sigma/alpha) at a share of the training timesteps."""
    if "schedule" not in plan.note:
        raise ValueError(
            "experts: the plan's note names no schedule, of whose times boundary= would be a "
            "share; level= is accepted"
        )
    schedule = from_json(plan.note["schedule"])
    if schedule.t_top > schedule.t_max:
        raise ValueError(
            f"experts: boundary={boundary:g} of {schedule!r:.60}, whose times have no end; level=, "
            "the noise level sigma/alpha, is accepted"
        )
    low, high = float(schedule.t_zero), float(schedule.t_max)
    table = getattr(schedule, "alphas_cumprod", ())
    wanted = boundary * (len(table) or float(schedule.label(high)))
    for _ in range(100):  # the label rises with the time
        middle = 0.5 * (low + high)
        low, high = (low, middle) if schedule.label(middle) >= wanted else (middle, high)
    return -float(schedule.half_log_snr(high))


def _in_steps(plan: Plan, edge: float, steps: Sequence[int]) -> tuple[Plan, list[int]]:
    """The plan made again in (high, low) steps on either side of the boundary."""
    counts = [integer(n) for n in steps] if isinstance(steps, (list, tuple)) else []
    if len(counts) != 2 or any(n is None or n < 1 for n in counts):
        raise ValueError(
            f"experts: steps = {steps!r:.60}; (high, low), two whole numbers from 1 up, is accepted"
        )
    if plan.sigma[0] == 0 or "grid" not in plan.note:
        raise ValueError(
            "experts: steps= of a plan that begins from an image, or names no grid; a solver's "
            "plan for noise is accepted, and remake for an image after it"
        )
    schedule = from_json(plan.note["schedule"])
    grid = parted(schedule, plan.note["grid"], float(np.exp(edge)), counts)
    note = {key: value for key, value in plan.note.items() if key not in ("experts", "models")}
    return replace(plan, note={**note, "grid": grid.tolist()}).remake(), counts
