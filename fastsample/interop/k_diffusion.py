"""k_sample: a Plan with the signature of k-diffusion's samplers, which ComfyUI, A1111 and Forge
share.

    noise = torch.randn(...) * plan.init_scale / plan.alpha[1]  # alpha: 1 on EDM
    x = k_sample(plan, model, noise, extra_args={"cond": c}, callback=show)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..kernels import transforms
from ..kernels.backend import select
from ..model import Model, to_kind
from ..plan import Plan, provenance
from ..runtime import arguments, outputs, sources
from ..runtime.drive import drive
from ..runtime.run import Run
from ..runtime.spares import Spares
from ..schedules import from_json
from .draws import Draws

# sigma/alpha below which data may be as large as the noise, and rms(x) tells nothing
LEAST_CHECKED = 4.0
KEPT = 8  # plans whose tables and idle runs are kept for their next call


@torch.no_grad()
def k_sample(
    plan: Plan,
    model: Callable,
    x: Tensor,
    extra_args: dict | None = None,
    callback: Callable | None = None,
    disable: bool | None = None,
    noise_sampler: Callable | None = None,
    check: str | None = "end",
    seed=None,
    stage=None,
) -> Tensor:
    """Run the plan on a denoiser: model(x, sigma·ones [B], **extra_args) -> x0 [B,*], where
    x = x0 + sigma·eps.

    plan: any plan with one branch, on any schedule; the denoiser takes the place of the model it
    was made for. Plans on VP or flow schedules run on their own state alpha·x; x in and out, and
    sigma, are k-diffusion's (sigma/alpha here).
    model: it must leave x and sigma as they are; x may be the state itself. An fs.Model must be
    such a denoiser by its words.
    x [B,*]: already scaled: s·noise, s = plan.init_scale / plan.alpha[1], which is sigma_max times
    the amplitude that a search found. Where s >= 4, rms(x) from 0.97 s to 1.03 sqrt(s² + 1) is
    accepted (data of up to unit variance may be mixed in), each end widened by 4/sqrt(2n) of it, 4
    standard errors for n numbers. For a plan made with start=: the noised image x0 +
    sigma/alpha·noise, of any size. The state is float32, float64 for a float64 x.
    callback: called once a step, after its first evaluation, with a dict of x, i, sigma, sigma_hat,
    denoised; its tensors are its to keep. disable: tqdm's. noise_sampler(sigma, sigma_next) ->
    [B,*]: the noises of a stochastic plan, in its order; by default torch.randn_like(x)
    (k-diffusion's SDE samplers default to a Brownian tree: pass one for their paths).
    check: "end": x is looked at before the run and the state after it; None: neither.
    seed, stage: the noises are those of a Run instead (`fastsample.runtime.sources`); a stage not
    given is 1 for an image and on a grid that begins below the schedule's noise end, else 0.

    Returns x at the plan's end, in x's dtype. Raises ValueError or TypeError, one sentence: for
    noise of another scale, for a plan that starts at alpha = 0 or reads a model's raw output, too;
    FloatingPointError if a state became non-finite.
    """
    _check_input(x, extra_args, noise_sampler)
    own, x, look = _checked(plan, model, x, check)
    draw = _source(own, noise_sampler, seed, stage, x)
    key = own.spares.key(own.plan, x, look)
    run = _begun(own, own.spares.take(key), x, draw, check)
    bar = None if disable else iter(_progress(len(own.starts), disable))
    end = drive(run, _asker(own, run, model, extra_args or {}, callback, bar), where="k_sample")
    if bar is not None:
        next(bar, None)
    run.check("k_sample")
    own.spares.give(key, run)
    return (end if own.alphas[-1] == 1.0 else end / own.alphas[-1]).to(x.dtype)


class Denoised(NamedTuple):
    """A plan for a denoiser, and what a run of it needs besides: alpha and sigma/alpha of every row
    [R], the rows at which a step begins, numbered, sigma/alpha of the grid before churn, weights
    and ids of the churn of row 0, what unit noise is scaled by (0 for an image), does any row draw
    noise, idle runs.
    """

    plan: Plan
    alphas: list[float]
    levels: np.ndarray
    starts: dict[int, int]
    before: np.ndarray | None
    churn: list[tuple[float, int]]
    scale: float
    draws: bool
    spares: Spares


_kept: WeakKeyDictionary[Plan, Denoised] = WeakKeyDictionary()
_lock = Lock()


def _denoised(plan: Plan) -> Denoised:
    """What the plan is made into, once."""
    if not isinstance(plan, Plan):
        raise TypeError(f"k_sample: plan is a {type(plan).__name__}; a fastsample.Plan is accepted")
    with _lock:
        made = _kept.get(plan)
        if made is None:
            made = _made(plan)
            if len(_kept) >= KEPT:
                _kept.clear()
            _kept[plan] = made
    return made


def _made(plan: Plan) -> Denoised:
    own, at, ids = _denoising(plan), plan.layout, plan.ids[0].tolist()
    drawn = enumerate(plan.program.rows[0].draws(at, masked=False))
    return Denoised(
        own,
        plan.alpha.tolist(),
        _levels(plan),
        {row: i for i, row in enumerate(_starts(plan))},
        _before_churn(plan),
        [
            (float(plan.M[0, 0, at.noise(k)]), ids[k])
            for k, is_drawn in drawn
            if is_drawn and ids[k]
        ],
        plan.init_scale / float(plan.alpha[1]) if plan.sigma[0] else 0.0,
        bool(arguments.drawn_from(own, 0, masked=False)),
        Spares(),
    )


def _begun(own: Denoised, spare: Run | None, x: Tensor, draw: Callable | None, check) -> Run:
    """A run at row 1, where x stands."""
    state = arguments.state_dtype(x)
    first = _first(own, x.to(state), draw)
    if spare is not None:
        spare.rewind(first, draw)
        return spare
    words = {"state_dtype": state, "model_dtype": x.dtype, "noise_source": draw, "preview": False}
    return Run(own.plan, latent=first, start=1, check=check, **words)


def _asker(
    own: Denoised, run: Run, model: Callable, extra: dict, callback: Callable | None, bar
) -> Callable:
    """ask(x, t, row) for `drive`: the denoiser's answer at sigma = t, bar and callback once a
    step.
    """
    dtype, alphas, starts = run.model_input.dtype, own.alphas, own.starts

    def ours(v: object) -> bool:
        """Is it memory that later rows write to? A model may return what it was given."""
        mine = run.model_input.untyped_storage().data_ptr()
        return isinstance(v, Tensor) and v.untyped_storage().data_ptr() == mine

    def show(x: Tensor, t: Tensor, row: int, denoised: object) -> None:
        i, hat = starts[row], t.new_tensor(own.levels[row])
        sigma = hat if own.before is None else hat.new_tensor(own.before[i])
        x, denoised = (v.clone() if ours(v) else v for v in (x, denoised))
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": hat, "denoised": denoised})

    def ask(x: Tensor, t: Tensor, row: int):
        if alphas[row] != 1.0:
            x = (run.x / alphas[row]).to(dtype)
        denoised = model(x, t if t.dtype is dtype else t.to(dtype), **extra)
        if row in starts:
            if bar is not None:
                next(bar, None)
            if callback is not None:
                show(x, t, row, denoised)
        fits = not isinstance(denoised, Tensor) or denoised.dtype is dtype or denoised.is_complex()
        return denoised if fits else denoised.to(dtype)

    return ask


def _check_input(x: Tensor, extra: object, sampler: object) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            f"k_sample: x is {x.dtype if isinstance(x, Tensor) else type(x).__name__}; a floating "
            "torch tensor [B, *] is accepted"
        )
    dense = x.layout == torch.strided and not x.is_nested
    if x.is_meta or not dense or x.dtype not in arguments.MODELS:
        kind = "nested" if x.is_nested else f"{list(x.shape)} ({x.layout}) on {x.device}"
        raise TypeError(
            f"k_sample: x is {x.dtype} {kind}; a dense tensor [B, *] of float32, float64, bfloat16 "
            "or float16 is accepted"
        )
    if not (extra is None or isinstance(extra, Mapping)):
        raise TypeError(
            f"k_sample: extra_args is a {type(extra).__name__}; a dict of the model's keywords, or "
            "None, is accepted"
        )
    if not (sampler is None or callable(sampler)):
        raise TypeError(
            f"k_sample: noise_sampler is a {type(sampler).__name__}; a callable(sigma, sigma_next) "
            "-> noise, or None, is accepted"
        )
    transforms.refuse("k_sample", x)


def _checked(plan: Plan, model: Callable, x: Tensor, check) -> tuple[Denoised, Tensor, bool]:
    """The plan for a denoiser, x without its graph, and is it looked at? All of them checked."""
    own, look = _denoised(plan), arguments.judged(check)
    if isinstance(model, Model):
        _check_model(own, model)
    x = x.detach() if x.requires_grad else x
    if look:
        _check_scale(own.scale, x)
    return own, x, look


def _check_model(own: Denoised, model: Model) -> None:
    """Refuse a Model that is told, given or says something else than a denoiser."""
    ones, levels = np.ones_like(own.levels), own.levels
    words = {"alpha": ones, "sigma": levels, "p": 0.0 * ones, "q": ones, "note": {}}
    if provenance.difference(replace(own.plan, **words), model) is not None:
        raise ValueError(
            f"k_sample: model is {model!r:.80}; a denoiser(x, sigma) -> x0, or Sampler(plan, "
            "model), is accepted"
        )


def _denoising(plan: Plan) -> Plan:
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
    if (plan.alpha[1:] == 0.0).any():
        raise ValueError(
            "k_sample: the plan starts at alpha = 0, where sigma/alpha is infinite; a grid that "
            "starts below is accepted"
        )
    p, q = plan.p.copy(), plan.q.copy()
    p[calls], q[calls] = to_kind(plan.stored, "x0", plan.alpha[calls], plan.sigma[calls])
    levels = _levels(plan)
    t = np.append(levels[1:], levels[-1])  # a row says it for the next
    return replace(plan, p=p, q=q, c=np.ones_like(plan.c), t=t[:, None])


def _levels(plan: Plan) -> np.ndarray:
    """sigma/alpha where each row begins [R]; row 0, which does not run, as row 1."""
    levels = plan.sigma[1:] / plan.alpha[1:]
    return np.append(levels[0], levels)


def _starts(plan: Plan) -> list[int]:
    """Rows at which a step begins: every call, or with stages in between those that read nothing
    older.
    """
    calls = np.flatnonzero(plan.call >= 0).tolist()
    steps = len(plan.note["times"]) - 1 if "times" in plan.note else len(calls)
    return calls if len(calls) == steps else [i for i in calls if i in plan.entries]


def _before_churn(plan: Plan) -> np.ndarray | None:
    """sigma/alpha of the plan's grid [n+1], before churn raised it; None where the note names no
    schedule, or one of somebody's own.
    """
    if "schedule" not in plan.note or "times" not in plan.note:
        return None
    try:
        schedule, times = from_json(plan.note["schedule"]), np.asarray(plan.note["times"])
    except ValueError:
        return None
    return schedule.sigma(times) / schedule.alpha(times)


def _check_scale(scale: float, x: Tensor) -> None:
    """Refuse noise that was scaled by another number than the plan's. Data of standard deviation up
    to 1 may be mixed in; how large an image is, only its owner knows.
    """
    n, energy = max(x.numel(), 1), float(arguments.sum_of_squares(x))
    arguments.check_values("x", x, energy)
    slack = 4 / math.sqrt(2 * n)
    low, high = 0.97 * scale * (1 - slack), 1.03 * math.hypot(scale, 1) * (1 + slack)
    if scale < LEAST_CHECKED or 1.001 * low <= math.sqrt(energy / n) <= 0.999 * high:
        return
    rms = float(x.double().square().mean().sqrt())  # a closer look
    if rms < low or rms > high:
        raise ValueError(
            f"k_sample: x has a root mean square of {rms:.4g} where {scale:.4g} is meant; unit "
            f"noise times plan.init_scale / plan.alpha[1] = {scale:.6g} is accepted"
        )


def _first(own: Denoised, x: Tensor, draw: Callable | None) -> Tensor:
    """The state at row 1: alpha·x, and the churn of the first step where row 0 draws it."""
    x = x if own.alphas[1] == 1.0 else x * own.alphas[1]
    return x + sum(w * draw(0, k).to(x.dtype) for w, k in own.churn) if own.churn else x


def _sampler(
    own: Denoised, noise_sampler: Callable | None, x: Tensor
) -> Callable[[int, int], Tensor]:
    """(row, id) -> noise; a row's noise goes from its own level to the next row's."""
    draws = Draws(own.plan)

    def new(row: int) -> Tensor:
        if noise_sampler is None:
            return torch.randn_like(x)
        levels = own.levels[row : row + 2].tolist()
        levels = torch.tensor(levels, dtype=arguments.state_dtype(x), device=x.device)
        noise = noise_sampler(*levels)
        if not isinstance(noise, Tensor) or noise.shape != x.shape or not noise.is_floating_point():
            raise ValueError(
                f"k_sample: noise_sampler gave {outputs.words(noise)} for an x of {list(x.shape)}; "
                "a floating tensor of that shape is accepted"
            )
        return noise

    return lambda row, name: draws(name, lambda: new(row))


def _source(own: Denoised, noise_sampler, seed, stage, x: Tensor) -> Callable | None:
    """(row, id) -> the noise of these seeds and stages, or the caller's; None where none is
    drawn.
    """
    if seed is None and stage is None:
        return _sampler(own, noise_sampler, x) if own.draws else None
    if seed is None or noise_sampler is not None:
        said = f"stage={stage!r:.40} without seed=" if seed is None else "seed= and noise_sampler="
        raise ValueError(
            f"k_sample: {said} was given; seed=, with or without stage=, or noise_sampler= is "
            "accepted"
        )
    batch, device, state = x.shape[0], x.device, arguments.state_dtype(x)
    if stage is None:
        stage = int(not own.scale or "noise_end" in own.plan.note)
    with arguments.named("k_sample"):
        seeds = sources.seeds(seed, batch, device, needed=True)
        stages = sources.stages(stage, own.plan, 1, batch, device)
    fill = select("step", device, state).module.fill

    def draw(row: int, name: int) -> Tensor:
        noise = torch.empty(x.shape, dtype=state, device=device)
        fill(noise, seeds, name, stages)
        return noise

    return draw


def _progress(steps: int, disable: bool | None) -> Iterable[int]:
    """tqdm's range where it is installed."""
    if disable:
        return range(steps)
    try:
        from tqdm.auto import trange
    except ImportError:
        return range(steps)
    return trange(steps, disable=disable)
