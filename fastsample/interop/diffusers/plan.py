"""A Plan that somebody brings to a scheduler: which ones a pipeline's loop can run, and how its
timesteps look there.
"""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ...plan import Plan
from ...plan.provenance import words_of
from .sources import PREDICTIONS


def checked_plan(plan: Plan) -> Plan:
    """The plan, or a ValueError: a pipeline has one model, one output of it at a step, the first
    too, and a timestep for an argument.
    """
    if not isinstance(plan, Plan):
        raise TypeError(
            f"FsScheduler: plan is a {type(plan).__name__}; a fastsample.Plan is accepted"
        )
    for what, is_so in (
        ("guidance branches", plan.G > 1 or plan.K > 0),
        ("model scalars", plan.E > 1),
        ("models", int(plan.call.max()) > 0),
    ):
        if is_so:
            raise ValueError(
                f"FsScheduler: the plan has several {what}; one is accepted, and guidance is the "
                "pipeline's"
            )
    if plan.call[1] < 0:
        raise ValueError(
            "FsScheduler: the plan's first step asks no model (analytic_first_step), and a "
            "pipeline asks it before every step; a plan that asks it there, or Sampler, is accepted"
        )
    return plan


def decoded(text: str, kind: str) -> Plan:
    """The plan that from_plan wrote into a config: the bytes of a .fsplan file as base64, checked
    as such a file is; kind: the prediction_type beside it.
    """
    try:
        plan = Plan.from_bytes(base64.b64decode(text, validate=True))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"FsScheduler: the config's plan cannot be read ({error}); a .fsplan file as base64 is "
            "accepted"
        ) from None
    said = {ours: theirs for theirs, ours in PREDICTIONS.items()}.get(
        str(plan.note.get("prediction"))
    )
    if said not in (None, kind):
        raise ValueError(
            f"FsScheduler: prediction_type = {kind!r:.60} beside a plan that was made for another; "
            f"{said!r} is accepted"
        )
    return plan


def check_length(
    plan: Plan, steps: int | None, timesteps: tuple | None, sigmas: tuple | None
) -> None:
    """A plan is its own schedule: what a pipeline asks for must have its length, in model calls or
    in grid steps.
    """
    times = plan.note.get("times")
    fits = {plan.nfe, *([len(times) - 1] if isinstance(times, list) else [])}
    with_end = fits | {n + 1 for n in fits}
    for name, length, accepted in (
        ("num_inference_steps", steps, fits),
        ("timesteps", timesteps and len(timesteps), fits),
        ("sigmas", sigmas and len(sigmas), with_end),
    ):
        if length is None or (not isinstance(length, bool) and length in accepted):
            continue
        raise ValueError(
            f"FsScheduler.set_timesteps: {name} asks for {length!r} steps and the plan makes "
            f"{plan.nfe} calls; num_inference_steps={plan.nfe} is accepted"
        )


def from_point(plan: Plan, first: int) -> Plan:
    """The plan from call `first` on, for an image already noised to that level."""
    if first == 0:
        return plan
    if plan.nfe != len(plan.note.get("grid") or []) - 1:
        raise ValueError(
            f"FsScheduler: begin_index = {first} of a plan that makes several calls a grid step; 0 "
            "is accepted"
        )
    return plan.remake(start=first)


@lru_cache(maxsize=32)
def bare(plan: Plan) -> tuple[Plan, bool]:
    """The plan without input scales: a pipeline scales its own model input, so the run need not
    write one. And whether every row asks the model: others work on the run's own memory.
    """
    own = plan if (plan.c == 1.0).all() else replace(plan, c=np.ones_like(plan.c))
    return own, bool((plan.call[1:-1] >= 0).all())


def number(timestep: object) -> float:
    """One timestep as a number."""
    try:
        return float(timestep)
    except (TypeError, ValueError):
        raise TypeError(
            f"FsScheduler: timestep is a {type(timestep).__name__}; one of scheduler.timesteps is "
            "accepted"
        ) from None


def init_scale(plan: Plan) -> float:
    """What a pipeline's unit noise is multiplied by to stand at row 1: plan.init_scale, or sigma
    for a plan made for an image; 1 for one that takes it up to noise.

    Where row 0 draws noise itself (churn), one draw stands for the sum: a pipeline asks its model
    before step could add another.
    """
    draws = enumerate(plan.program.rows[0].draws(plan.layout, masked=False))
    drawn = [float(plan.M[0, 0, plan.layout.noise(k)]) for k, is_drawn in draws if is_drawn]
    found = math.hypot(plan.init_scale if plan.sigma[0] else 0.0, *drawn)
    return found or 1.0  # an inverted plan begins with an image, as it is


def scale_of(plan: Plan) -> str:
    """vp, sigma or flow: which sum of alpha and sigma is 1 all along (see `grids`); vp where
    none is.
    """
    alpha, sigma = plan.alpha[1:], plan.sigma[1:]
    if np.allclose(alpha, 1.0, rtol=0, atol=1e-9):
        return "sigma"
    return "flow" if np.allclose(alpha + sigma, 1.0, rtol=0, atol=1e-9) else "vp"


def is_whole(plan: Plan) -> bool:
    """Are its timesteps whole numbers of a table? They are int64 then, as diffusers' own are."""
    told = plan.t[np.flatnonzero(plan.call >= 0) - 1, 0]
    indexed = words_of(plan, "schedule").get("name") == "DiscreteVP"
    return indexed and bool((told == np.round(told)).all())
