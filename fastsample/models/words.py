"""What a model that knows the posterior mean must speak: noise levels at t, and any of the six
predictions.

    levels(schedule)(t)      alpha(t), sigma(t) in torch, on any device and under torch.compile;
                             `fastsample.schedules` has them in NumPy
    spoken(prediction, ...)  one prediction from x0 and eps together, by sums that stay finite at
                             alpha = 0 and at sigma = 0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from fastsample import schedules
from fastsample.kernels.narrow import hosted, wide


def levels(
    schedule: Any, device: Any = "cpu"
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The function t -> alpha(t), sigma(t), both float64 [B] on t's device, or on the host where
    that has no float64.

    t [B] is the schedule's own time, of any dtype. Computed in float64, t clamped to the schedule's
    range: a float32 t may round past its end. Tables lie on `device` (elsewhere each call copies
    them). A schedule other than the six of `fastsample.schedules` is asked in NumPy, which
    torch.compile cannot look into.
    """
    if isinstance(schedule, schedules.EDM):
        return _edm
    low, high = float(schedule.t_zero), float(schedule.t_max)
    if isinstance(schedule, schedules.DiscreteVP):
        point = partial(_discrete_vp, _table(schedule, device))
    else:
        point = next((f for kind, f in _POINTS.items() if isinstance(schedule, kind)), _numpy)
    return partial(_within, point, schedule, low, high)  # which a pickle can name


def _edm(t: torch.Tensor):
    level = wide(t)
    return torch.ones_like(level), level


def _within(point: Callable, schedule: Any, low: float, high: float, t: torch.Tensor):
    return point(schedule, wide(t).clamp(low, high))


def _numpy(schedule: Any, t: torch.Tensor):
    at = t.detach().cpu().numpy()
    values = (np.asarray(f(at)) for f in (schedule.alpha, schedule.sigma))
    return tuple(torch.as_tensor(v, dtype=torch.float64, device=t.device) for v in values)


def _flow(schedule: schedules.Flow, t: torch.Tensor):
    scale = 1.0 + (schedule.shift - 1.0) * t
    return (1.0 - t) / scale, schedule.shift * t / scale


def _trigflow(schedule: schedules.TrigFlow, t: torch.Tensor):
    return torch.where(t >= schedule.t_max, 0.0, t.cos()), schedule.sigma_data * t.sin()


def _vp(schedule: schedules.VP, t: torch.Tensor):
    decay = 0.25 * t * t * (schedule.beta_max - schedule.beta_min) + 0.5 * t * schedule.beta_min
    return torch.exp(-decay), torch.sqrt(-torch.expm1(-2.0 * decay))


def _ve(schedule: schedules.VE, t: torch.Tensor):
    ratio = torch.exp(t.clamp(min=0.0) * math.log(schedule.sigma_max / schedule.sigma_min))
    return torch.ones_like(t), schedule.sigma_min * torch.where(t < 0.0, 1.0 + t, ratio)


_POINTS = {
    schedules.Flow: _flow,
    schedules.TrigFlow: _trigflow,
    schedules.VP: _vp,
    schedules.VE: _ve,
}


def _table(schedule: schedules.DiscreteVP, device: Any) -> torch.Tensor:
    """half_log_snr at the whole t that are finite, float64."""
    whole = schedule.half_log_snr(np.arange(int(schedule.t_finite) + 1))
    here = hosted(torch.empty(0, device=device)).device
    return torch.tensor(whole, dtype=torch.float64, device=here)


def _discrete_vp(levels_at: torch.Tensor, schedule: schedules.DiscreteVP, t: torch.Tensor):
    # half_log_snr is linear between whole t. In an interval with an infinite end sigma/alpha (or
    # alpha/sigma) is linear instead.
    last = len(levels_at) - 1
    table, inside = levels_at.to(t.device), t.clamp(0.0, last)
    low = inside.long().clamp(max=last - 1)
    level = torch.lerp(table[low], table[low + 1], inside - low)
    level = torch.where(t < 0.0, table[0] - torch.log1p(t.clamp(-1.0, 0.0)), level)
    above = torch.log((schedule.t_max - t).clamp(min=0.0))
    level = torch.where(t > last, table[last] + above, level)
    return torch.rsqrt(1.0 + torch.exp(-2.0 * level)), torch.rsqrt(1.0 + torch.exp(2.0 * level))


def spoken(prediction: str, x0, eps, alpha, sigma, sigma_data: float):
    """The prediction made of both halves of x = alpha·x0 + sigma·eps; NumPy or torch, alpha and
    sigma broadcast against x0.

        v = alpha·eps - sigma·x0      flow = eps - x0
        edm = (sigma·x0 - alpha·sd²·eps)/(sd·n)      trigflow = -edm      n² = sigma² + alpha²sd²

    Given exact x0 and eps nothing is divided by alpha or sigma. Definitions: `fastsample.model`.
    Raises ValueError for another word.
    """
    if prediction in ("edm", "trigflow"):
        sd = sigma_data
        network = (sigma * x0 - alpha * sd**2 * eps) / (sd * (sigma**2 + alpha**2 * sd**2) ** 0.5)
        return network if prediction == "edm" else -network
    if prediction == "x0":
        return x0
    if prediction == "eps":
        return eps
    if prediction == "v":
        return alpha * eps - sigma * x0
    if prediction == "flow":
        return eps - x0
    raise ValueError(
        f"spoken: prediction = {prediction!r}; x0, eps, v, flow, edm or trigflow is accepted"
    )
