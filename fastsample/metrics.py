"""Compare runs: PSNR and errors between end points, plans against a teacher, the usual grids to
beat. Nets that judge are arguments.

    mse(a, b) = mean (a - b)^2      psnr(a, b) = 10 log10(range^2 / mse(a, b)) dB

with range = 2 for data in [-1, 1].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .plan import Plan

DATA_RANGE = 2.0  # data in [-1, 1]
# sigma/alpha the noise is labelled with; None: the schedule's largest
STARTS = (None, 40.0, 20.0, 10.0, 5.0, 2.5)


def mse(a: Any, b: Any) -> float:
    """mean (a - b)^2 over all samples and elements, in float64.

    a, b [B,*] NumPy or torch, equal shapes.
    """
    return float(_squared(a, b, "mse").mean())


def max_abs(a: Any, b: Any) -> float:
    """max |a - b|. a, b [B,*] NumPy or torch, equal shapes."""
    return float(np.sqrt(_squared(a, b, "max_abs").max()))


def psnr(a: Any, b: Any, data_range: float = DATA_RANGE) -> float:
    """10 log10(data_range^2 / mse) in dB, the mse over all samples together.

    inf for equal inputs, nan where one holds NaN.
    """
    return decibel(mse(a, b), data_range)


def psnr_quartiles(a: Any, b: Any, data_range: float = DATA_RANGE) -> tuple[float, float, float]:
    """The quartiles (25, 50, 75 %) over samples of each sample's own PSNR in dB. a, b [B,*]."""
    each = _squared(a, b, "psnr_quartiles")
    each = each.reshape(len(each), -1).mean(axis=1)
    # On the mse, where a sample of error 0 is an ordinary number.
    low, mid, high = np.quantile(each, [0.75, 0.5, 0.25])
    return decibel(low, data_range), decibel(mid, data_range), decibel(high, data_range)


def settled(
    make: Callable[[int], Plan], run: Callable[[Plan], Any], at_least: float, most: int
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
        agreement = psnr(end, closer)
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
    **words: Any,
) -> tuple[Plan, float, Any]:
    """The first plan of nfe, 2 nfe, 4 nfe, ... steps whose end points agree to `at_least` dB with
    those at twice as many.

    On `grids.fine` of the schedule. Returns (plan, dB, end points [B,*]). RuntimeError if none
    does, the finer one of at most `most` evaluations.
    """
    from . import grids, solvers

    if nfe == 1:
        raise ValueError(
            "find_teacher: nfe=1; at least 2 is accepted, as one step and two, the last from "
            "t_min, agree by themselves"
        )
    make = lambda parts: solvers.SOLVERS[solver](model, grids.fine(model.schedule, parts * nfe))
    ended = lambda plan: run(plan, model, noise, **words)
    plan, agreement, end = settled(make, ended, at_least, most // 2)
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


def score(
    plan: Plan,
    model: Any,
    noise: Any,
    target: Any,
    *,
    judges: Mapping[str, Callable[[Any], float]] | None = None,
    **words: Any,
) -> Score:
    """Run `plan` on unit noise [B,*] and compare its end points with `target` [B,*].

    judges: {name: function of the end points}.
    """
    begin = time.perf_counter()
    end = run(plan, model, noise, **words)
    seconds = time.perf_counter() - begin
    judged = {name: float(judge(end)) for name, judge in (judges or {}).items()}
    return Score(plan.nfe, psnr(end, target), psnr_quartiles(end, target), seconds, judged, end)


def hand_made(
    schedule: Any, nfe: int, starts: Sequence[float | None] | None = None
) -> dict[str, np.ndarray]:
    """The usual time grids of nfe steps in every variant: {label: grid [nfe+1]}.

    Even spacing in the schedule's t, in log(sigma/alpha), in Karras' (sigma/alpha)^(1/7), in flow
    time sigma/(alpha+sigma) and in the angle atan(sigma/alpha); the noise labelled with the
    schedule's own largest level (None) or a smaller sigma/alpha; the last step to the clean end, or
    to the schedule's smallest noise level.
    """
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


def by_hand(model: Any, nfe: int, solver: str | None = None) -> list[tuple[str, str, Plan]]:
    """(solver, grid, plan) of every plan of exactly nfe evaluations that a deterministic solver
    makes of a `hand_made` grid, each once; a grid that it refuses for this model is left out.

    solver: a name, or None for all of them. Solvers that share a jump (ddim and euler) are one.
    """
    from . import solvers

    if solver is not None and solver not in list(solvers.SOLVERS):
        raise ValueError(
            f"by_hand: solver={solver!r}; None, or one of {', '.join(solvers.SOLVERS)}, is accepted"
        )
    alike = {solvers.JUMPS.get(name, name): name for name in solvers.SOLVERS}
    names = [solver] if solver else alike.values()
    steps = sorted({nfe, nfe // 2, nfe // 2 + 1} & set(range(1, nfe + 1)))
    usual = [hand_made(model.schedule, n) for n in steps]
    found = {}
    for name in names:
        for grids in usual:
            for grid, times in grids.items():
                try:
                    plan = solvers.SOLVERS[name](model, times)
                except ValueError:  # eps where alpha = 0: the grids from below are left
                    continue
                if plan.L or abs(plan.nfe - nfe) > 2:
                    break  # draws noise, or spends another number of evaluations a step
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
    **words: Any,
) -> Plan:
    """Of the plans `by_hand` of nfe evaluations (solver=None: of any solver) the one that ends
    nearest to `target` [B,*] (PSNR).

    All are judged on the first `screen` noises, the best `finalists` of them on every noise; one
    whose run does not stay finite is at -inf dB. note["found"] names its solver and grid, its dB,
    and the evaluations of the whole comparison, all noises together. ValueError where none is.
    """
    for name, value in (("nfe", nfe), ("screen", screen), ("finalists", finalists)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(
                f"best_hand_made: {name}={value!r}; a whole number of at least 1 is accepted"
            )
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
    last = [one[1:] for one in _ranked(plans, model, noise, target, few, words)[:finalists]]
    figure, name, grid, plan = _ranked(last, model, noise, target, B, words)[0]
    spent = nfe * (few * len(plans) + B * len(last))
    found = {"solver": name, "grid": grid, "psnr": figure, "samples": B, "evaluations": spent}
    return plan.with_note(found={"method": "by hand", **found})


def _ranked(
    plans: Sequence[tuple], model: Any, noise: Any, target: Any, count: int, words: Mapping
) -> list[tuple]:
    """(dB, solver, grid, plan) of every plan on the first `count` noises, the best first, nan last.

    plans: (solver, grid, plan) of each.
    """
    cut, few = _cut(words, slice(count), noise), noise[:count]
    figures = [(reached(one[-1], model, few, target[:count], **cut), *one) for one in plans]
    return sorted(figures, key=lambda one: math.inf if math.isnan(one[0]) else -one[0])


def reached(plan: Plan, model: Any, noise: Any, target: Any, **words: Any) -> float:
    """PSNR in dB of the end points of `plan` to `target` [B,*]; -inf where the run does not stay
    finite. words as `run` takes them.
    """
    try:
        return psnr(run(plan, model, noise, **words), target)
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
    **words: Any,
) -> Any:
    """End points [B,*] of `plan` on unit noise [B,*], in chunks of at most batch_size samples;
    sample b draws from seed + b.

    seed: None takes it from the noise, so that plans are compared on the same draws and fresh noise
    draws afresh. state_dtype: float64 for float64 noise, else float32. words: cond, uncond,
    branches, guidance as `Sampler` takes them, cut with their samples: conditions as
    `fastsample.runtime.conditions` says, of the others arrays of B rows.
    """
    import torch

    from .runtime import arguments
    from .runtime.sampler import Sampler
    from .runtime.sources import seed_of

    if seed is None:
        seed = seed_of(noise) if (plan.ids >= 0).any() else 0
    sampler = Sampler(plan, model, state_dtype=state_dtype or arguments.state_dtype(noise))
    parts = []
    for samples in arguments.chunks("metrics.run", len(noise), batch_size):
        cut = _cut(words, samples, noise)
        parts.append(sampler(noise=noise[samples], seed=seed + samples.start, **cut))
    return torch.cat(parts)


def _cut(words: Mapping[str, Any], samples: slice, noise: Any) -> dict[str, Any]:
    """The words of some samples of the noise."""
    from .runtime.conditions import branches_of, take

    names = ("cond", "uncond", "branches")
    trees = branches_of("metrics", *(words.get(name) for name in names), len(noise), noise.device)
    cut = {name: take(tree, samples) for name, tree in trees.items()}
    cut = cut if words.get("branches") is None else {"branches": list(cut.values())}
    for name, value in words.items():
        if name not in names:
            follows = getattr(value, "ndim", 0) and len(value) == len(noise)
            cut[name] = value[samples] if follows else value
    return cut


def _squared(a: Any, b: Any, where: str) -> np.ndarray:
    a, b = _float64(a), _float64(b)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(
            f"{where}: shapes {list(a.shape)} and {list(b.shape)}; two arrays of one shape, with "
            "at least one element, are needed"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        return (a - b) ** 2


def _float64(a: Any) -> np.ndarray:
    a = a.detach().double().cpu().numpy() if hasattr(a, "detach") else a
    return np.asarray(a, dtype=np.float64)


def decibel(error: float, data_range: float = DATA_RANGE) -> float:
    """10 log10(data_range^2 / error) of a mean squared error; inf at 0, -inf at inf, nan at nan."""
    if not (data_range > 0 and math.isfinite(data_range)):
        raise ValueError(f"psnr: data_range={data_range}; a finite number above 0 is needed")
    if error == 0:
        return math.inf
    if not math.isfinite(error):
        return -math.inf if error == math.inf else math.nan
    return 10 * math.log10(data_range**2 / error)
