"""k_sample: a Plan with the signature of k-diffusion's samplers, which ComfyUI, A1111 and Forge
share.

    noise = torch.randn(...) * plan.init_scale / plan.alpha[1]  # alpha: 1 on EDM
    x = k_sample(plan, model, noise, extra_args={"cond": c}, callback=show)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..kernels import transforms
from ..model import to_kind
from ..plan import Plan
from ..runtime.run import Run
from ..schedules import from_json
from .draws import Draws

# sigma/alpha below which data may be as large as the noise, and rms(x) tells nothing
LEAST_CHECKED = 4.0


@torch.no_grad()
def k_sample(
    plan: Plan,
    model: Callable,
    x: Tensor,
    extra_args: dict | None = None,
    callback: Callable | None = None,
    disable: bool | None = None,
    noise_sampler: Callable | None = None,
) -> Tensor:
    """Run the plan on a denoiser: model(x, sigma·ones [B], **extra_args) -> x0 [B,*], where
    x = x0 + sigma·eps.

    plan: any plan with one branch, on any schedule; the denoiser takes the place of the model it
    was made for. Plans on VP or flow schedules run on their own state alpha·x; x in and out, and
    sigma, are k-diffusion's (sigma/alpha here).
    x [B,*]: already scaled: s·noise, s = plan.init_scale / plan.alpha[1], which is sigma_max times
    the amplitude that a search found. Where s >= 4, rms(x) from 0.97 s to 1.03 sqrt(s² + 1) is
    accepted (data of up to unit variance may be mixed in), each end widened by 4/sqrt(2n) of it, 4
    standard errors for n numbers. For a plan made with start=: the noised image x0 +
    sigma/alpha·noise, of any size. The state is float32, float64 for a float64 x.
    callback: called once a step, after its first evaluation, with a dict of x, i, sigma, sigma_hat,
    denoised; its tensors are its to keep. disable: tqdm's. noise_sampler(sigma, sigma_next) ->
    [B,*]: the noises of a stochastic plan, in its order; by default torch.randn_like(x)
    (k-diffusion's SDE samplers default to a Brownian tree: pass one for their paths).

    Returns x at the plan's end, in x's dtype. Raises ValueError or TypeError, one sentence: for
    noise of another scale, for a plan that starts at alpha = 0 or reads a model's raw output, too.
    """
    _check_input(x)
    plan = _denoising(plan)
    _check_scale(plan, x)
    state = torch.float64 if x.dtype == torch.float64 else torch.float32
    sigmas = torch.tensor(_levels(plan), dtype=state, device=x.device)
    draw = _sampler(plan, noise_sampler, x, sigmas)
    run = Run(
        plan,
        latent=_first(plan, x.to(state), draw),
        start=1,
        state_dtype=state,
        model_dtype=x.dtype,
        noise_source=draw,
        preview=False,
    )
    _walk(run, model, x.dtype, sigmas, extra_args or {}, callback, disable)
    return (run.x / float(plan.alpha[-1])).to(x.dtype)


def _walk(
    run: Run,
    model: Callable,
    dtype: torch.dtype,
    sigmas: Tensor,
    extra_args: dict,
    callback: Callable | None,
    disable: bool | None,
) -> None:
    """The run to its end: the model asked in dtype at sigmas [R], callback and bar once a step."""
    starts, before = _starts(run.plan), _before_churn(run.plan)
    ones, bar = (
        sigmas.new_ones([run.x.shape[0]], dtype=dtype),
        iter(_progress(len(starts), disable)),
    )
    while not run.done:
        row = run.row
        asked = (run.x / float(run.plan.alpha[row])).to(dtype)
        denoised = model(asked, sigmas[row].to(dtype) * ones, **extra_args)
        if row in starts:
            next(bar, None)
        if row in starts and callback is not None:
            i, hat = starts.index(row), sigmas[row]
            sigma = hat if before is None else hat.new_tensor(before[i])
            callback({"x": asked, "i": i, "sigma": sigma, "sigma_hat": hat, "denoised": denoised})
        run.step(denoised.to(dtype) if isinstance(denoised, Tensor) else denoised)
    next(bar, None)


def _check_input(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            f"k_sample: x is {x.dtype if isinstance(x, Tensor) else type(x).__name__}; a floating "
            "torch tensor [B, *] is accepted"
        )
    transforms.refuse("k_sample", x)


def _denoising(plan: Plan) -> Plan:
    """The same rows for a model that returns x0: m = p·x + q·x0 in the stored kind."""
    if not isinstance(plan, Plan):
        raise TypeError(f"k_sample: plan is a {type(plan).__name__}; a fastsample.Plan is accepted")
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
    return replace(plan, p=p, q=q)


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


def _check_scale(plan: Plan, x: Tensor) -> None:
    """Refuse noise that was scaled by another number than the plan's. Data of standard deviation up
    to 1 may be mixed in.
    """
    if plan.sigma[0] == 0:  # an image, and only its owner knows how large it is
        return
    scale = plan.init_scale / float(plan.alpha[1])
    rms = float(x.detach().double().square().mean().sqrt())
    slack = 4 / math.sqrt(2 * max(x.numel(), 1))
    low, high = 0.97 * scale * (1 - slack), 1.03 * math.hypot(scale, 1) * (1 + slack)
    if scale >= LEAST_CHECKED and (rms < low or rms > high):
        raise ValueError(
            f"k_sample: x has a root mean square of {rms:.4g} where {scale:.4g} is meant; unit "
            f"noise times plan.init_scale / plan.alpha[1] = {scale:.6g} is accepted"
        )


def _first(plan: Plan, x: Tensor, draw: Callable) -> Tensor:
    """The state at row 1: alpha·x, and the churn of the first step where row 0 draws it."""
    at, drawn = plan.layout, plan.program.rows[0].draws(plan.layout, masked=False)
    noises = [k for k in range(plan.L) if drawn[k] and plan.ids[0, k] != 0]
    if not noises:
        return x * float(plan.alpha[1])
    churn = sum(
        float(plan.M[0, 0, at.noise(k)]) * draw(0, int(plan.ids[0, k])).to(x.dtype) for k in noises
    )
    return x * float(plan.alpha[1]) + churn


def _sampler(
    plan: Plan, noise_sampler: Callable | None, x: Tensor, sigmas: Tensor
) -> Callable[[int, int], Tensor]:
    """(row, id) -> noise; a row's noise goes from its own level to the next row's."""
    draws = Draws(plan)

    def new(row: int) -> Tensor:
        if noise_sampler is None:
            return torch.randn_like(x)
        return noise_sampler(sigmas[row], sigmas[row + 1])

    return lambda row, name: draws(name, lambda: new(row))


def _progress(steps: int, disable: bool | None) -> Iterable[int]:
    """tqdm's range where it is installed."""
    if disable:
        return range(steps)
    try:
        from tqdm.auto import trange
    except ImportError:
        return range(steps)
    return trange(steps, disable=disable)
