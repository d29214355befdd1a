"""k_sample: a Plan with the signature of k-diffusion's samplers, which ComfyUI, A1111 and Forge
share.

    noise = torch.randn(...) * plan.init_scale / plan.alpha[1]  # alpha: 1 on EDM
    x = k_sample(plan, model, noise, extra_args={"cond": c}, callback=show)

What the denoiser is asked with, model(x, sigma·ones [B]) -> x0, is one of

    x = x0 + sigma·eps                state="sigma", k-diffusion's
    x = (1 - sigma)·x0 + sigma·eps    state="flow", ComfyUI's for flow models, sigma up to 1

and the plan runs on its own state alpha·x0 + sigma·eps, which is u times that: u = alpha, or
alpha + sigma for "flow".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..kernels import transforms
from ..kernels.backend import select
from ..model import Model
from ..plan import Plan, provenance
from ..runtime import arguments, outputs, sources
from ..runtime.drive import drive
from ..runtime.run import Run
from ..runtime.select import Select
from .denoised import Denoised, denoised
from .draws import Draws

# sigma/alpha below which data may be as large as the noise, up to LARGEST times what the plan takes
# it for
LEAST_CHECKED, LARGEST = 4.0, 8.0


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
    *,
    seed=None,
    stage=None,
    state: str = "sigma",
    eta: float | None = None,
    s_noise: float | None = None,
) -> Tensor:
    """Run the plan on a denoiser: model(x, sigma·ones [B], **extra_args) -> x0 [B,*].

    plan: any plan with one branch, on any schedule; the denoiser takes the place of the model it
    was made for. x in and out, sigma, and all that callback and noise_sampler see are the
    denoiser's, of x0 + sigma·eps, or with state="flow" of (1 - sigma)·x0 + sigma·eps.
    model: it must leave x and sigma as they are; x may be the state itself. An fs.Model must be
    such a denoiser by its words.
    x [B,*]: already scaled: s·noise, s = `k_scale(plan)`, the sigma where the plan begins times the
    amplitude that a search found; its size is checked. For a plan made with start=: the noised
    image, of any size. The state is float32, float64 for a float64 x.
    callback: called once a step, after its first evaluation, with a dict of x, i, sigma, sigma_hat,
    denoised; its tensors are its to keep. disable: tqdm's. noise_sampler(sigma, sigma_next) ->
    [B,*]: the noises of a stochastic plan, in its order, each over its part of a step; by default
    torch.randn_like(x) (k-diffusion's SDE samplers default to a Brownian tree, which is accepted).
    check: "end": x is looked at before the run and the state after it; None: neither.
    seed, stage: the noises are those of a Run instead (`fastsample.runtime.sources`); a stage not
    given is 1 for an image and on a grid that begins below the schedule's noise end, else 0.
    eta, s_noise: how much noise a step takes away and puts back, and what that is multiplied by:
    the plan's solver is made with them in place of its own, as `Plan.remake` does.

    Returns x at the plan's end, in x's dtype. Raises ValueError or TypeError, one sentence, and
    FloatingPointError if a state became non-finite.
    """
    _check_input(model, x, extra_args, noise_sampler, callback)
    own, x, look = _checked(denoised(plan, state, eta, s_noise), model, x, check)
    draw = _source(own, noise_sampler, seed, stage, x)
    key = own.spares.key(own.plan, x, look)
    run = _begun(own, own.spares.take(key), x, draw, check)
    bar = iter(_progress(len(own.starts), disable))
    end = drive(run, _asker(own, run, model, extra_args or {}, callback, bar), where="k_sample")
    next(bar, None)  # closes it
    run.check("k_sample")
    own.spares.give(key, run)
    return (end if own.units[-1] == 1.0 else end / own.units[-1]).to(x.dtype)


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
    dtype, units, starts = run.model_input.dtype, own.units, own.starts

    def ours(v: object) -> bool:
        """Is it memory that later rows write to? A model may return what it was given."""
        mine = run.model_input.untyped_storage().data_ptr()
        return isinstance(v, Tensor) and v.untyped_storage().data_ptr() == mine

    def show(x: Tensor, t: Tensor, row: int, denoised: object) -> None:
        i, hat = starts[row], t.new_tensor(own.levels[row])
        sigma = hat.new_tensor(own.before[i])
        x, denoised = (v.clone() if ours(v) else v for v in (x, denoised))
        told = {"x": x, "i": i, "sigma": sigma, "sigma_hat": hat, "denoised": denoised}
        if isinstance(callback(told), Select):
            raise TypeError(
                "k_sample: callback returned a Select, and extra_args belong to the whole batch; "
                "Sampler's callback, or Run.select, is accepted"
            )

    def ask(x: Tensor, t: Tensor, row: int):
        if units[row] != 1.0:
            x = (run.x / units[row]).to(dtype)
        denoised = outputs.only(model(x, t if t.dtype is dtype else t.to(dtype), **extra))
        if row in starts:
            next(bar, None)
            if callback is not None:
                show(x, t, row, denoised)
        real = isinstance(denoised, Tensor) and denoised.is_floating_point()
        return denoised.to(dtype) if real else denoised

    return ask


def _check_input(
    model: object, x: Tensor, extra: object, sampler: object, callback: object
) -> None:
    if not callable(model):
        raise TypeError(
            f"k_sample: model is a {type(model).__name__}; a callable(x, sigma [B]) -> x0 is "
            "accepted"
        )
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            f"k_sample: x is {x.dtype if isinstance(x, Tensor) else type(x).__name__}; a floating "
            "torch tensor [B, *] is accepted"
        )
    dense = x.layout == torch.strided and not x.is_nested and x.dim() > 0
    if arguments.numberless(x.device) or not dense or x.dtype not in arguments.MODELS:
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
    if not (callback is None or callable(callback)):
        raise TypeError(
            f"k_sample: callback is a {type(callback).__name__}; a callable(dict), or None, is "
            "accepted"
        )
    transforms.refuse("k_sample", x)


def _checked(own: Denoised, model: Callable, x: Tensor, check) -> tuple[Denoised, Tensor, bool]:
    """The plan for a denoiser, x without its graph, and is it looked at? All of them checked."""
    look = arguments.judged(check)
    if isinstance(model, Model):
        _check_model(own, model)
    x = x.detach() if x.requires_grad else x
    if look:
        _check_scale(own, x)
    return own, x, look


def _check_model(own: Denoised, model: Model) -> None:
    """Refuse a Model that is told, given or says something else than a denoiser."""
    ones, units = np.ones_like(own.levels), np.array(own.units)
    words = {"alpha": own.plan.alpha / units, "sigma": own.levels}
    words |= {"p": 0.0 * ones, "q": ones, "note": {}}
    if provenance.difference(replace(own.plan, **words), model) is not None:
        raise ValueError(
            f"k_sample: model is {model!r:.80}; a denoiser(x, sigma) -> x0, or Sampler(plan, "
            "model), is accepted"
        )


def _check_scale(own: Denoised, x: Tensor) -> None:
    """Refuse noise that was scaled by another number than the plan's s: a root mean square from
    .97 s to 1.03 times that of noise with data mixed in, of unit variance or sigma_data, is
    accepted, each end widened by 4/sqrt(2n) of it, 4 standard errors for n numbers. How large a
    plan's own image is, only its owner knows.
    """
    n, energy, scale = max(x.numel(), 1), float(arguments.sum_of_squares(x)), own.scale
    arguments.check_values("x", x, energy, "k_sample")
    slack, data = 4 / math.sqrt(2 * n), own.data
    if scale < LEAST_CHECKED * data:
        data *= LARGEST
    low, high = 0.97 * scale * (1 - slack), 1.03 * math.hypot(scale, data) * (1 + slack)
    if scale == 0.0 or 1.001 * low <= math.sqrt(energy / n) <= 0.999 * high:
        return
    rms = float(x.double().square().mean().sqrt())  # a closer look
    if rms < low or rms > high:
        alone = own.units[1] == own.plan.alpha[1]
        unit = "plan.alpha[1]" if alone else "(plan.alpha[1] + plan.sigma[1])"
        raise ValueError(
            f"k_sample: x has a root mean square of {rms:.4g} where {scale:.4g} is meant; unit "
            f"noise times plan.init_scale / {unit} = {scale:.6g} is accepted"
        )


def _first(own: Denoised, x: Tensor, draw: Callable | None) -> Tensor:
    """The state at row 1: u·x, and the churn of the first step where row 0 draws it."""
    x = x if own.entry == 1.0 else x * own.entry
    return x + sum(w * draw(0, k).to(x.dtype) for w, k in own.churn) if own.churn else x


def _sampler(
    own: Denoised, noise_sampler: Callable | None, x: Tensor
) -> Callable[[int, int], Tensor]:
    """(row, id) -> noise; asked with the levels of the part of a step that it is added over."""
    draws = Draws(own.plan)

    def new(row: int, name: int) -> Tensor:
        if noise_sampler is None:
            return torch.randn_like(x)
        levels = own.levels[[*own.over.get(name, (row, row + 1))]].tolist()
        levels = torch.tensor(levels, dtype=arguments.state_dtype(x), device=x.device)
        noise = noise_sampler(*levels)
        if not isinstance(noise, Tensor) or noise.shape != x.shape or not noise.is_floating_point():
            raise ValueError(
                f"k_sample: noise_sampler gave {outputs.words(noise)} for an x of {list(x.shape)}; "
                "a floating tensor of that shape is accepted"
            )
        return noise

    return lambda row, name: draws(name, lambda: new(row, name))


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
