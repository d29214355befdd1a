"""Compare runs: PSNR and errors between end points, plans against a teacher, the usual grids to beat. Nets that judge are arguments.

mse(a, b) = mean (a - b)^2        psnr(a, b) = 10 log10(range^2 / mse(a, b)) dB        range = 2 for data in [-1, 1]
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .plan import Plan

__all__ = [
    "Score",
    "best_hand_made",
    "decibel",
    "find_teacher",
    "hand_made",
    "max_abs",
    "mse",
    "psnr",
    "psnr_quartiles",
    "run",
    "score",
    "teacher_agreement",
]

DATA_RANGE = 2.0  # data in [-1, 1]
STARTS = (None, 40.0, 20.0, 10.0, 5.0, 2.5)  # sigma/alpha the noise is labelled with; None: the schedule's largest


def mse(a: Any, b: Any) -> float:
    """mean (a - b)^2 over all samples and elements, in float64. a, b [B,*] NumPy or torch, equal shapes."""
    return float(_squared(a, b, "mse").mean())


def max_abs(a: Any, b: Any) -> float:
    """max |a - b|. a, b [B,*] NumPy or torch, equal shapes."""
    return float(np.sqrt(_squared(a, b, "max_abs").max()))


def psnr(a: Any, b: Any, data_range: float = DATA_RANGE) -> float:
    """10 log10(data_range^2 / mse) in dB, the mse over all samples together. inf for equal inputs, nan where one holds NaN."""
    return decibel(mse(a, b), data_range)


def psnr_quartiles(a: Any, b: Any, data_range: float = DATA_RANGE) -> tuple[float, float, float]:
    """The quartiles (25, 50, 75 %) over samples of each sample's own PSNR in dB. a, b [B,*]."""
    each = _squared(a, b, "psnr_quartiles")
    each = each.reshape(len(each), -1).mean(axis=1)
    low, mid, high = np.quantile(each, [0.75, 0.5, 0.25])  # on the mse, where a sample of error 0 is an ordinary number
    return decibel(low, data_range), decibel(mid, data_range), decibel(high, data_range)


def teacher_agreement(plan: Plan, finer: Plan, model: Any, noise: Any, **words: Any) -> tuple[float, Any]:
    """PSNR in dB between the end points of `plan` and of `finer`, the same solver at twice its evaluations; >= 60 makes `plan` a teacher.

    Returns (dB, end points of `plan` [B,*]). words: cond, uncond, guidance, seed, as `Sampler` takes them.
    """
    if finer.nfe < 2 * plan.nfe - 1:  # a solver of 2 evaluations a step spends 2n - 1
        raise ValueError(f"teacher_agreement: the finer plan has {finer.nfe} evaluations beside {plan.nfe}; about twice as many are needed")
    end = run(plan, model, noise, **words)
    return psnr(end, run(finer, model, noise, **words)), end


def find_teacher(
    model: Any, noise: Any, *, solver: str = "dpmpp_3m", nfe: int = 100, at_least: float = 60.0, most: int = 1600, **words: Any
) -> tuple[Plan, float, Any]:
    """The first plan of nfe, 2 nfe, 4 nfe, ... evaluations whose end points agree to `at_least` dB with those at twice as many.

    Karras' grid. Returns (plan, dB, end points [B,*]). RuntimeError if none of up to `most` evaluations does.
    """
    from . import grids, solvers

    make = lambda n: solvers.SOLVERS[solver](model, grids.karras(model.schedule, n))  # noqa: E731
    agreement, plan = -math.inf, make(nfe)
    end = run(plan, model, noise, **words)
    while 2 * plan.nfe <= most:
        finer = make(2 * plan.nfe)
        closer = run(finer, model, noise, **words)
        agreement = psnr(end, closer)
        if agreement >= at_least:
            return plan, agreement, end
        plan, end = finer, closer
    raise RuntimeError(
        f"find_teacher: {solver} with {plan.nfe} evaluations agrees with half as many to {agreement:.1f} dB only; "
        f"{at_least:g} dB is needed: a smoother model, another solver or a larger `most`"
    )


@dataclass(frozen=True)
class Score:
    """One plan measured against target end points. `judged` holds what the extra nets said, by name."""

    nfe: int
    psnr: float  # dB, over all samples
    quartiles: tuple[float, float, float]  # dB, per sample
    seconds: float  # wall-clock of the whole batch
    judged: Mapping[str, float] = field(default_factory=dict)
    end: Any = None  # [B,*] end points


def score(
    plan: Plan, model: Any, noise: Any, target: Any, *, judges: Mapping[str, Callable[[Any], float]] | None = None, **words: Any
) -> Score:
    """Run `plan` on unit noise [B,*] and compare its end points with `target` [B,*]. judges: {name: function of the end points}."""
    begin = time.perf_counter()
    end = run(plan, model, noise, **words)
    seconds = time.perf_counter() - begin
    judged = {name: float(judge(end)) for name, judge in (judges or {}).items()}
    return Score(plan.nfe, psnr(end, target), psnr_quartiles(end, target), seconds, judged, end)


def hand_made(schedule: Any, nfe: int, starts: Sequence[float | None] | None = None) -> dict[str, np.ndarray]:
    """The usual time grids of nfe steps in every variant: {label: grid [nfe+1]}.

    Even spacing in the schedule's t, in log(sigma/alpha), in Karras' (sigma/alpha)^(1/7), in flow time sigma/(alpha+sigma) and in the angle
    atan(sigma/alpha); the noise labelled with the schedule's own largest level (None) or a smaller sigma/alpha; the last step to the clean
    end, or to the schedule's smallest noise level.
    """
    shapes = {
        "Karras": (lambda s: s ** (1 / 7), lambda w: w**7),
        "log-uniform": (np.log, np.exp),
        "uniform flow time": (lambda s: s / (1 + s), lambda w: w / (1 - w)),
        "uniform angle": (np.arctan, np.tan),
    }
    low, high = (float(np.exp(-schedule.half_log_snr(t))) for t in (schedule.t_min, schedule.t_finite))
    out = {}
    for start in STARTS if starts is None else starts:
        top = high if start is None else start
        if not low < top <= high:
            continue
        ends = (schedule.t_max if start is None else float(schedule.time(-np.log(top))), schedule.t_min)
        grids = {"uniform t": lambda n, ends=ends: np.linspace(*ends, n)}
        for name, (warp, back) in shapes.items():
            grids[name] = lambda n, warp=warp, back=back, top=top, ends=ends: np.concatenate(
                [ends[:1], schedule.time(-np.log(back(np.linspace(warp(top), warp(low), n)[1:-1]))), ends[1:]]
            )
        for name, grid in grids.items():
            label = name if start is None else f"{name} from {start:g}"
            if nfe > 1:
                out[label] = np.append(grid(nfe), schedule.t_zero)
            out[f"{label}, not to zero"] = grid(nfe + 1)
    return {name: grid for name, grid in out.items() if (np.diff(grid) < 0).all()}


def best_hand_made(
    model: Any, noise: Any, nfe: int, target: Any, *, solver: str = "euler", screen: int = 16, finalists: int = 6, **words: Any
) -> Plan:  # fmt: skip
    """Of every `hand_made` grid of nfe steps the one that ends nearest to `target` [B,*] (PSNR); note["found"] names it.

    All are judged on the first `screen` noises, the best `finalists` of them on every noise.
    """
    from . import solvers

    plans = {name: solvers.SOLVERS[solver](model, grid) for name, grid in hand_made(model.schedule, nfe).items()}

    def ranked(names: Any, count: int) -> list[tuple[float, str]]:
        cut = {name: _cut(value, slice(count), len(noise)) for name, value in words.items()}
        figures = [(psnr(run(plans[name], model, noise[:count], **cut), target[:count]), name) for name in names]
        return sorted(figures, key=lambda pair: -pair[0] if pair[0] == pair[0] else math.inf)

    names = [name for _, name in ranked(plans, min(screen, len(noise)))[:finalists]]
    figure, best = ranked(names, len(noise))[0]
    return plans[best].with_note(found={"method": "by hand", "grid": best, "psnr": figure, "samples": len(noise)})


def run(
    plan: Plan, model: Any, noise: Any, *, batch_size: int = 256, seed: int | None = None, state_dtype: Any = None, **words: Any
) -> Any:  # fmt: skip
    """End points [B,*] of `plan` on unit noise [B,*], in chunks of at most batch_size samples; sample b draws from seed + b.

    seed: None takes it from the noise, so that plans are compared on the same draws and fresh noise draws afresh.
    state_dtype: float64 for float64 noise, else float32. words: cond, uncond, guidance as `Sampler` takes them; tensors of B rows are cut.
    """
    import torch

    from .kernels.noise import seed_of
    from .sampler import Sampler

    if seed is None:
        seed = seed_of(noise) if (plan.ids >= 0).any() else 0
    sampler = Sampler(plan, model, state_dtype=state_dtype or (torch.float64 if noise.dtype == torch.float64 else torch.float32))
    parts = []
    for first in range(0, len(noise), batch_size):
        samples = slice(first, first + batch_size)
        cut = {name: _cut(value, samples, len(noise)) for name, value in words.items()}
        parts.append(sampler(noise=noise[samples], seed=seed + first, **cut))
    return torch.cat(parts)


def _cut(value: Any, samples: slice, batch: int) -> Any:
    """The part of a word (or of a dict of words) that belongs to some samples; what has no batch dimension is passed on."""
    if isinstance(value, Mapping):
        return {k: _cut(v, samples, batch) for k, v in value.items()}
    return value[samples] if getattr(value, "ndim", 0) and len(value) == batch else value


def _squared(a: Any, b: Any, where: str) -> np.ndarray:
    a, b = _float64(a), _float64(b)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(
            f"{where}: shapes {list(a.shape)} and {list(b.shape)}; two arrays of one shape, with at least one element, are needed"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        return (a - b) ** 2


def _float64(a: Any) -> np.ndarray:
    return np.asarray(a.detach().double().cpu().numpy() if hasattr(a, "detach") else a, dtype=np.float64)


def decibel(error: float, data_range: float = DATA_RANGE) -> float:
    """10 log10(data_range^2 / error) of a mean squared error; inf at 0, -inf at inf, nan at nan."""
    if not (data_range > 0 and math.isfinite(data_range)):
        raise ValueError(f"psnr: data_range={data_range}; a finite number above 0 is needed")
    if error == 0:
        return math.inf
    return 10 * math.log10(data_range**2 / error) if math.isfinite(error) else (-math.inf if error == math.inf else math.nan)
