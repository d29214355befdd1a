"""What a step is told that the rows of its run are made with: one value for the whole run. Imports
no diffusers.

    eta                                DDIM, TCD: a number
    order                              LMSDiscrete
    s_noise                            DPMSolverSDE
    s_churn, s_tmin, s_tmax, s_noise   EulerDiscrete, EDMEuler, FlowMatchHeun (`churned`)

A run is made for a number, or for pairs (name, value) of these where they are not at their
defaults, which is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from ...plan.given import integer, within

CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}
CHURNED = ("EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchHeunDiscreteScheduler")
OPTIONS: dict[str, dict] = {
    **dict.fromkeys(CHURNED, CHURN),
    "LMSDiscreteScheduler": {"order": 4},
    "DPMSolverSDEScheduler": {"s_noise": 1.0},
}
Told = float | tuple


def told(source: str, given: Mapping) -> Told:
    """Of what a step was given, what its rows depend on; ValueError for a value out of range."""
    usual = OPTIONS.get(source, {})
    if usual is CHURN and given.get("s_churn") in (None, 0.0):  # nothing reads the others
        return 0.0
    found = {k: _checked(source, k, given[k]) for k in usual if given.get(k) is not None}
    if all(v == usual[k] for k, v in found.items()):
        return 0.0
    return tuple((usual | found).items())


def options(made_for: Told) -> dict:
    return dict(made_for) if isinstance(made_for, tuple) else {}


def another(new: Told, old: Told) -> ValueError:
    """That a run was made for something else."""
    words = (
        f"eta = {new} after {old}"
        if new.__class__ is old.__class__ is float
        else f"{_words(new)} after {_words(old)}"
    )
    return ValueError(f"FsScheduler.step: {words}; one value for the whole run is accepted")


# -- inside ----------------------------------------------------------------------------------------
def _words(made_for: Told) -> str:
    return ", ".join(f"{k} = {v}" for k, v in options(made_for).items()) or "the defaults"


def _checked(source: str, name: str, value: object) -> float:
    if name == "order":
        found, accepted = integer(value), "1, 2, 3 or 4"
        found = found if found in (1, 2, 3, 4) else None
    else:
        found, accepted = None, "a number from 0 up"
        if isinstance(value, Real) and not isinstance(value, bool):
            endless = name == "s_tmax" and value == math.inf
            found = math.inf if endless else within(value, 0.0, math.inf)
    if found is None:
        raise ValueError(
            f"FsScheduler.step: {name} = {value!r:.40} of {source}; {accepted} is accepted"
        )
    return found
