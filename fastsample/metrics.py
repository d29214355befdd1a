"""Compare runs: PSNR and errors between end points, plans against a teacher, the usual grids to
beat. Nets that judge are arguments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import grids, solvers
from .distances import (
    DATA_RANGE,
    decibel,
    element_weights,
    max_abs,
    mse,
    psnr,
    psnr_each,
    psnr_quartiles,
)
from .plan import Plan
from .plan.given import integer

__all__ = [
    "DATA_RANGE",
    "STARTS",
    "Score",
    "best_hand_made",
    "by_hand",
    "decibel",
    "element_weights",
    "find_teacher",
    "hand_made",
    "max_abs",
    "mse",
    "psnr",
    "psnr_each",
    "psnr_quartiles",
    "reached",
    "run",
    "score",
    "settled",
]

# sigma/alpha the noise is labelled with; None: the schedule's largest
STARTS = (None, 40.0, 20.0, 10.0, 5.0, 2.5)
MOST = 6  # evaluations a step, of a solver in comparisons


def settled(
    make: Callable[[int], Plan],
    run: Callable[[Plan], Any],
    at_least: float,
    most: int,
    weight: Any = None,
) -> tuple[Plan, float, Any]:
    """(plan, dB, end points) of the first of make(1), make(2), make(4), ... whose end points agree
    to `at_least` dB with those of the next.

    Each is run once. The last of up to `most` evaluations if none does.
    """
    parts, plan = 1, make(1)
    end = run(plan)
    while True:
        parts *= 2
        finer = make(parts)
        closer = run(finer)
        agreement = psnr(end, closer, weight=weight)
        if agreement >= at_least or finer.nfe > most:
            return plan, agreement, end
        plan, end = finer, closer


def find_teacher(
    model: Any,
    noise: Any,
    *,
    solver: str = "dpmpp_3m",
    nfe: int = 100,
    at_least: float = 60.0,
    most: int = 1600,
    weight: Any = None,
    **words: Any,
) -> tuple[Plan, float, Any]:
    """The first plan of nfe, 2 nfe, 4 nfe, ... steps whose end points agree to `at_least` dB with
    those at twice as many.

    On `grids.fine` of the schedule. Returns (plan, dB, end points [B,*]). RuntimeError if none
    does, the finer one of at most `most` evaluations.
    """
    if nfe == 1:
        raise ValueError(
            "find_teacher: nfe=1; at least 2 is accepted, as one step and two, the last from "
            "t_min, agree by themselves"
        )
    make = lambda parts: solvers.SOLVERS[solver](model, grids.fine(model.schedule, parts * nfe))
    ended = lambda plan: run(plan, model, noise, **words)
    plan, agreement, end = settled(make, ended, at_least, most // 2, weight)
    if agreement >= at_least:
        return plan, agreement, end
    raise RuntimeError(
        f"find_teacher: {solver} with {plan.nfe} evaluations agrees with twice as many to "
        f"{agreement:.1f} dB only; {at_least:g} dB is needed: a smoother model, another solver or "
        "a larger `most`"
    )


@dataclass(frozen=True)
class Score:
    """One plan measured against target end points; `judged`: what the extra nets said, by name."""

    nfe: int
    psnr: float  # dB, over all samples
    quartiles: tuple[float, float, float]  # dB, per sample
    seconds: float  # wall-clock of the whole batch
    judged: Mapping[str, float] = field(default_factory=dict)
    end: Any = None  # [B,*] end points
    mean: float = math.nan  # dB, of each sample's own PSNR


def score(
    plan: Plan,
    model: Any,
    noise: Any,
    target: Any,
    *,
    judges: Mapping[str, Callable[[Any], float]] | None = None,
    weight: Any = None,
    **words: Any,
) -> Score:
    """Run `plan` on unit noise [B,*] and compare its end points with `target` [B,*].

    judges: {name: function of the end points}.
    """
    begin = time.perf_counter()
    end = run(plan, model, noise, **words)
    seconds = time.perf_counter() - begin
    judged = {name: float(judge(end)) for name, judge in (judges or {}).items()}
    near = psnr(end, target, weight=weight), psnr_quartiles(end, target, weight=weight)
    mean = float(psnr_each(end, target, weight=weight).mean())
    return Score(plan.nfe, *near, seconds, judged, end, mean)


def hand_made(
    schedule: Any, nfe: int, starts: Sequence[float | None] | None = None
) -> dict[str, np.ndarray]:
    """The usual time grids of nfe steps in every variant: {label: grid [nfe+1]}.

    Even spacing in the schedule's t, in log(sigma/alpha), in Karras' (sigma/alpha)^(1/7), in flow
    time sigma/(alpha+sigma) and in the angle atan(sigma/alpha); the noise labelled with the
    schedule's own largest level (None) or a smaller sigma/alpha; the last step to the clean end, or
    to the schedule's smallest noise level.
    """
    nfe = _whole("hand_made", "nfe", nfe)
    shapes = {
        "Karras": (lambda s: s ** (1 / 7), lambda w: w**7),
        "log-uniform": (np.log, np.exp),
        "uniform flow time": (lambda s: s / (1 + s), lambda w: w / (1 - w)),
        "uniform angle": (np.arctan, np.tan),
    }
    level = lambda t: float(np.exp(-schedule.half_log_snr(t)))
    low, high, out = level(schedule.t_min), level(schedule.t_finite), {}

    def spaced(name: str, n: int, first: float, top: float) -> np.ndarray:
        if name == "uniform t":
            return np.linspace(first, schedule.t_min, n)
        warp, back = shapes[name]
        inner = schedule.time(-np.log(back(np.linspace(warp(top), warp(low), n)[1:-1])))
        return np.concatenate([[first], inner, [schedule.t_min]])

    for start in STARTS if starts is None else starts:
        top = high if start is None else start
        if not low < top <= high:
            continue
        first = schedule.t_max if start is None else float(schedule.time(-np.log(top)))
        for name in ("uniform t", *shapes):
            label = name if start is None else f"{name} from {start:g}"
            whole = spaced(name, nfe, first, top) if nfe > 1 else first
            out[label] = np.append(whole, schedule.t_zero)
            out[f"{label}, not to zero"] = spaced(name, nfe + 1, first, top)
    return {name: grid for name, grid in out.items() if (np.diff(grid) < 0).all()}


def _whole(where: str, name: str, value: Any) -> int:
    """A whole number of at least 1, or a ValueError."""
    number = integer(value)
    if number is None or number < 1:
        raise ValueError(f"{where}: {name}={value!r:.60}; a whole number of at least 1 is accepted")
    return number


def by_hand(model: Any, nfe: int, solver: str | None = None) -> list[tuple[str, str, Plan]]:
    """(solver, grid, plan) of every plan of exactly nfe evaluations that a deterministic solver
    makes of a `hand_made` grid, each once; a grid that it refuses for this model is left out.

    solver: a name, or None for the usual ones (`maker.usual`) and those you registered. Solvers
    that share a jump (ddim and euler) are one.
    """
    if solver is not None and solver not in list(solvers.SOLVERS):
        raise ValueError(
            f"by_hand: solver={solver!r}; None, or one of {', '.join(solvers.SOLVERS)}, is accepted"
        )
    nfe = _whole("by_hand", "nfe", nfe)
    alike = {solvers.JUMPS.get(name, name): name for name in solvers.SOLVERS}
    usual = (name for name in alike.values() if getattr(solvers.SOLVERS[name], "usual", True))
    names = [solver] if solver else list(usual)
    # of up to MOST evaluations a step, and one in the first and the last
    tried = {nfe // each + more for each in range(1, MOST + 1) for more in (0, 1, 2)}
    steps = sorted(tried & set(range(1, nfe + 1)))
    grids_of = [hand_made(model.schedule, n) for n in steps]
    found = {}
    for name in names:
        for spaced in grids_of:
            for grid, times in spaced.items():
                try:
                    plan = solvers.SOLVERS[name](model, times)
                except ValueError:  # eps where alpha = 0: the grids from below are left
                    continue
                if plan.L or abs(plan.nfe - nfe) > 2 or (not solver and "direction" in plan.note):
                    break  # noise, another number of evaluations a step, guidance of its own
                if plan.nfe == nfe:
                    found.setdefault((plan.M.tobytes(), plan.t.tobytes()), (name, grid, plan))
    return list(found.values())


def best_hand_made(
    model: Any,
    noise: Any,
    nfe: int,
    target: Any,
    *,
    solver: str | None = "euler",
    screen: int = 4,
    finalists: int = 5,
    weight: Any = None,
    **words: Any,
) -> Plan:
    """The plan of nfe evaluations that ends nearest to `target` [B,*] from `noise` [B,*], by PSNR,
    of all that `by_hand` makes with `solver` on every usual grid; None: with every usual solver.

    All are judged on the first `screen` noises, the best `finalists` of them on every noise; one
    whose run does not stay finite is at -inf dB. weight is as `element_weights` takes it, words are
    the model's, as `run` takes them. note["found"] names its solver and grid, its dB, and the
    evaluations of the whole comparison, all noises together. ValueError where no plan is made.
    """
    for name, value in (("nfe", nfe), ("screen", screen), ("finalists", finalists)):
        _whole("best_hand_made", name, value)
    if len(target) != len(noise):
        raise ValueError(
            f"best_hand_made: {len(target)} end points for {len(noise)} noises; one for each is "
            "accepted"
        )
    plans = by_hand(model, nfe, solver)
    if not plans:
        raise ValueError(
            f"best_hand_made: {solver} makes no plan of {nfe} evaluations without noise; another "
            "solver or number is needed"
        )
    few, B = min(screen, len(noise)), len(noise)
    weight = element_weights("best_hand_made", weight, noise.shape)
    ranked = lambda plans, n: _ranked(plans, model, noise[:n], target[:n], weight, words, noise)
    last = [one[1:] for one in ranked(plans, few)[:finalists]]
    figure, name, grid, plan = ranked(last, B)[0]
    spent = nfe * (few * len(plans) + B * len(last))
    found = {"solver": name, "grid": grid, "psnr": figure, "samples": B, "evaluations": spent}
    return plan.with_note(found={"method": "by hand", **found})


def _ranked(
    plans: Sequence[tuple],
    model: Any,
    few: Any,
    target: Any,
    weight: np.ndarray | None,
    words: Mapping,
    noise: Any,
) -> list[tuple]:
    """(dB, solver, grid, plan) of every plan on `few`, the first of the noises that the words and
    weights [B,D] belong to, the best first, nan last. plans: (solver, grid, plan) of each.
    """
    import torch

    from .runtime.ranks import ALONE

    n = len(few)
    given = _cut(words, slice(n), noise)
    given["weight"] = None if weight is None else weight[:n].reshape(few.shape)
    ranks = given.pop("ranks", None) or ALONE
    figures = torch.empty(len(plans), 1, dtype=torch.float64)

    def judge(k: int) -> None:
        figures[k] = reached(plans[k][-1], model, few, target, **given)

    ranks.deal(range(len(plans)), judge, lambda k: figures[k])
    pairs = zip(figures[:, 0].tolist(), plans, strict=True)
    ranked = [(figure, *one) for figure, one in pairs]
    return sorted(ranked, key=lambda one: math.inf if math.isnan(one[0]) else -one[0])


def reached(
    plan: Plan, model: Any, noise: Any, target: Any, *, weight: Any = None, **words: Any
) -> float:
    """PSNR in dB of the end points of `plan` to `target` [B,*]; -inf where the run does not stay
    finite. words as `run` takes them.
    """
    try:
        return psnr(run(plan, model, noise, **words), target, weight=weight)
    except FloatingPointError:
        # One plan asks the model where it cannot answer: that says nothing of the others.
        return -math.inf


def run(
    plan: Plan,
    model: Any,
    noise: Any,
    *,
    batch_size: int = 256,
    seed: int | None = None,
    state_dtype: Any = None,
    model_dtype: Any = None,
    ranks: Any = None,
    asked: Callable[[int], Any] | None = None,
    **words: Any,
) -> Any:
    """End points [B,*] of `plan` on unit noise [B,*], in chunks of at most batch_size samples;
    sample b draws from seed + b.

    seed: None takes it from the noise, so that plans are compared on the same draws and fresh noise
    draws afresh. state_dtype: float64 for float64 noise, else float32; model_dtype: what the model
    is asked in, the noise's by default. ranks: processes that the chunks are dealt to, by default
    none (`fastsample.runtime.ranks`). asked: called with the evaluations of every chunk. words:
    cond, uncond, branches, guidance as `Sampler` takes them, cut with their samples: conditions as
    `fastsample.runtime.conditions` says, of the others arrays of B rows.
    """
    import torch

    from .runtime import arguments
    from .runtime.ranks import ALONE
    from .runtime.sampler import Sampler
    from .runtime.sources import seed_of

    if not isinstance(noise, torch.Tensor):
        raise TypeError(f"metrics.run: noise is a {type(noise).__name__}; a tensor [B,*] is needed")
    if seed is None:
        seed = seed_of(noise) if (plan.ids >= 0).any() else 0
    seed = arguments.first_seed("metrics.run", seed)
    state = state_dtype or arguments.state_dtype(noise)
    sampler = Sampler(plan, model, state_dtype=state, model_dtype=model_dtype)
    end = torch.empty_like(noise, dtype=state)

    def ended(samples: slice) -> None:
        given = _cut(words, samples, noise)
        end[samples] = sampler(noise=noise[samples], seed=seed + samples.start, **given)
        if asked is not None:
            asked(plan.nfe * (samples.stop - samples.start))

    chunks = arguments.chunks("metrics.run", len(noise), batch_size)
    (ranks or ALONE).deal(chunks, ended, lambda samples: end[samples])
    return end


def _cut(words: Mapping[str, Any], samples: slice, noise: Any) -> dict[str, Any]:
    """The words of some samples of the noise."""
    from .runtime.conditions import branches_of, take

    names = ("cond", "uncond", "branches")
    trees = branches_of("metrics", *(words.get(name) for name in names), len(noise), noise.device)
    found = {name: take(tree, samples) for name, tree in trees.items()}
    found = found if words.get("branches") is None else {"branches": list(found.values())}
    for name, value in words.items():
        if name not in names:
            follows = getattr(value, "ndim", 0) and len(value) == len(noise)
            found[name] = value[samples] if follows else value
    return found
