"""A plan made into one for a denoiser, which returns x0 and is told its own noise level: what
`k_sample` runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from ..grids.points import points
from ..model import to_kind
from ..plan import Plan
from ..plan.given import real, within
from ..plan.provenance import words_of
from ..plan.steps import begins, spans, unasked
from ..runtime import arguments
from ..runtime.spares import Spares

KEPT = 8  # plans whose tables and idle runs are kept for their next call
# state -> u(alpha, sigma), by which a plan's own state is larger than the denoiser's
UNITS = {"sigma": lambda alpha, sigma: alpha, "flow": lambda alpha, sigma: alpha + sigma}


class Denoised(NamedTuple):
    """A plan for a denoiser, and what a run of it needs besides: u of every row [R] and the
    denoiser's sigma there, the rows at which a step begins, numbered, sigma of the grid before
    churn, weights and ids of the churn of row 0, u where x comes in, what unit noise is scaled by
    there (0 for an image) and the data beside it, does any row draw noise, the rows between which
    each noise is added, idle runs.
    """

    plan: Plan
    units: list[float]
    levels: np.ndarray
    starts: dict[int, int]
    before: np.ndarray
    churn: list[tuple[float, int]]
    entry: float
    scale: float
    data: float
    draws: bool
    over: dict[int, tuple[int, int]]
    spares: Spares


_kept: WeakKeyDictionary[Plan, dict[tuple, Denoised]] = WeakKeyDictionary()
_lock = Lock()


def _number(name: str, value: object) -> float | None:
    """A number from 0 up, or None."""
    number = None if value is None else within(value, 0.0)
    if number is None and value is not None:
        raise ValueError(f"k_sample: {name} = {value!r:.60}; a number from 0 up is accepted")
    return number


def denoised(plan: Plan, state: str, eta: float | None, s_noise: float | None) -> Denoised:
    """What the plan is made into, once."""
    if not isinstance(plan, Plan):
        raise TypeError(f"k_sample: plan is a {type(plan).__name__}; a fastsample.Plan is accepted")
    if state not in UNITS:
        raise ValueError(f"k_sample: state is {state!r:.60}; {' or '.join(UNITS)} is accepted")
    if not (eta is None and s_noise is None):
        eta, s_noise = _number("eta", eta), _number("s_noise", s_noise)
    key = state, eta, s_noise
    with _lock:
        made = _kept.get(plan, {}).get(key)
        if made is None:
            made = _made(_noisier(plan, {"eta": eta, "s_noise": s_noise}), UNITS[state])
            if sum(map(len, _kept.values())) >= KEPT:
                _kept.clear()
            _kept.setdefault(plan, {})[key] = made
    return made


def _noisier(plan: Plan, asked: dict[str, float | None]) -> Plan:
    """The plan, made again where its solver is asked for other arguments than it was made with."""
    own, still = plan.note.get("arguments") or {}, not arguments.drawn_from(plan, 0, masked=False)
    usual = {"eta": 0.0 if still else None, "s_noise": 1.0}  # what a solver without them does
    asked = {k: v for k, v in asked.items() if v is not None and (k in own or v != usual[k])}
    for word, value in asked.items():
        if word not in own:
            raise ValueError(
                f"k_sample: {word} = {value!r:.60} for a plan of {plan.note.get('solver')!s:.60}, "
                "which has none; plans of solvers that draw noise are accepted"
            )
    if all(own[word] == value for word, value in asked.items()):
        return plan
    return plan.with_note(arguments={**own, **asked}).remake(plan.note.get("start"))


def _made(plan: Plan, unit: Callable) -> Denoised:
    own, at, ids = _denoising(plan, unit), plan.layout, plan.ids[0].tolist()
    drawn, units = enumerate(plan.program.rows[0].draws(at, masked=False)), _units(plan, unit)
    churn = [
        (float(plan.M[0, 0, at.noise(k)]), ids[k]) for k, is_drawn in drawn if is_drawn and ids[k]
    ]
    entry = float(units[1])
    if churn:  # x has less noise than row 1 begins with, and as much data
        added = sum(w * w for w, _ in churn)
        entry = float(unit(plan.alpha[1], math.sqrt(plan.sigma[1] ** 2 - added)))
    spread = real(words_of(plan, "model").get("sigma_data")) or 1.0
    alpha, sigma = points(plan)
    return Denoised(
        own,
        units.tolist(),
        _levels(plan, unit),
        {row: i for i, row in enumerate(begins(plan), unasked(plan))},
        sigma / unit(alpha, sigma),
        churn,
        entry,
        plan.init_scale / entry if plan.sigma[0] else 0.0,
        max(1.0, spread) * float(plan.alpha[1]) / entry,
        bool(arguments.drawn_from(own, 0, masked=False)),
        spans(own),
        Spares(),
    )


def _denoising(plan: Plan, unit: Callable) -> Plan:
    """The same rows for a model that returns x0 and is told its level: m = p·x + q·x0 in the stored
    kind.
    """
    if plan.G > 1 or plan.K > 0 or plan.E > 1 or int(plan.call.max()) > 0:
        raise ValueError(
            "k_sample: the plan has several branches, models or model scalars; one of each is "
            "accepted, and guidance is the model's"
        )
    at, calls = plan.layout, plan.call >= 0
    raw = [row.reads_operand(at.f) or row.reads_operand(at.branch(0)) for row in plan.program.rows]
    if any(raw):
        raise ValueError(
            f"k_sample: row {raw.index(True)} reads the model's raw output; plans that "
            "read only x and predictions are accepted"
        )
    if (_units(plan, unit) == 0.0).any():
        raise ValueError(
            "k_sample: the plan starts at alpha = 0, where sigma/alpha is infinite; a grid that "
            'starts below is accepted, or state="flow" for a denoiser of (1 - sigma) x0 + sigma eps'
        )
    p, q = plan.p.copy(), plan.q.copy()
    p[calls], q[calls] = to_kind(plan.stored, "x0", plan.alpha[calls], plan.sigma[calls])
    levels = _levels(plan, unit)
    t = np.append(levels[1:], levels[-1])  # a row says it for the next
    return replace(plan, p=p, q=q, c=np.ones_like(plan.c), t=t[:, None])


def _units(plan: Plan, unit: Callable) -> np.ndarray:
    """u where each row begins [R]; row 0, which does not run, as row 1."""
    units = unit(plan.alpha[1:], plan.sigma[1:])
    return np.append(units[0], units)


def _levels(plan: Plan, unit: Callable) -> np.ndarray:
    """The denoiser's sigma where each row begins [R]; row 0 as row 1."""
    return np.append(plan.sigma[1], plan.sigma[1:]) / _units(plan, unit)
