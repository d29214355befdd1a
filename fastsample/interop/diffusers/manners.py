"""Manners: what a diffusers class does in a step beside the rows of its plan. No diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...model import to_x0
from ...runtime.arguments import state_dtype
from ...runtime.run import Run
from .config import trained_levels
from .consistency import NAME as CM
from .scm import NAME as SCM
from .sources import COGVIDEOX, PREDICTIONS, UNBOUNDED, UNCLIP, find, is_sde
from .steps import variances
from .wuerstchen import NAME as WUERSTCHEN

if TYPE_CHECKING:
    from .lookup import Lookup


@dataclass(frozen=True)
class Thresholding:
    """x0 <- clamp(x0, -s, s)/s, s = min(max(1, the share `ratio` quantile of a sample's |x0|),
    top): Saharia et al. 2022, arXiv:2205.11487, sec. 2.3.
    """

    ratio: float
    top: float

    def bound(self, run: Run, f: Tensor, x: Tensor) -> None:
        """Bound the prediction of the run's next row, from the state x and the model's output f."""
        p, q = float(run.plan.p[run.row]), float(run.plan.q[run.row])
        run.bounds().copy_(self.limits(p * x + q * f.to(x.dtype)))

    def limits(self, x0: Tensor) -> Tensor:
        """s [B] of predictions [B,*]."""
        s = torch.quantile(x0.flatten(1).abs(), self.ratio, dim=1)
        return torch.clamp(s, min=1.0, max=self.top)


@dataclass(frozen=True)
class Manner:
    """draws(label, eta): a step draws, also where its noise is multiplied by 0. free: a step is
    that of its timestep, in any order. last: a timestep that is not in the schedule is taken for
    the last one. each: a timestep may be a tensor [B] of one number. blind: at the first alpha is
    0, and the model predicts epsilon, which says nothing of the data there.
    """

    draws: Callable[[float, float], bool] | None = None
    thresholding: Thresholding | None = None
    free: bool = False
    last: bool = False
    each: bool = False
    blind: bool = False


PLAIN = Manner()
# each of whose steps is that of its timestep
FREE = ("DDIMScheduler", "DDPMScheduler", "DDIMInverseScheduler", COGVIDEOX, UNCLIP)
# a noise in every step, the last one's for nothing
DRAWING = (
    "EulerAncestralDiscreteScheduler",
    "SASolverScheduler",
    "FlowMatchLCMScheduler",
    SCM,
    WUERSTCHEN,
)


def manner(source: str, config: dict, compat: bool, steps: int) -> Manner:
    """Of a class with this config in a run of so many steps; compat: as diffusers has it, else no
    more than its rows need.
    """
    bound = None
    reads = config.get("predict_x0", True) and source not in UNBOUNDED
    if config.get("thresholding") and reads:
        bound = _thresholding(config)
    if not compat:
        return Manner(thresholding=bound, each=source == WUERSTCHEN)
    return Manner(
        _draws(source, config, steps),
        bound,
        free=source in FREE,
        last=find(source).family.extra or source.startswith(("EDMDPM", "Cosine")),
        each=source == WUERSTCHEN,
    )


def with_learned(
    draw: Callable[..., Tensor], loop: Lookup, kind: str, output: object, timestep, sample: object
) -> Callable[..., Tensor]:
    """The draws of a DDPM step, each element times the deviation that v, the second half of the
    model's output [B,2C,*], says it has.

    "learned": sqrt(v). "learned_range": small^((1-v)/4) large^((1+v)/4), of which the row has
    sqrt(small) (`steps.posterior`). ValueError for an output that has no such half. Nichol and
    Dhariwal 2021, arXiv:2102.09672, eq. 15.
    """
    if not (isinstance(output, Tensor) and isinstance(sample, Tensor)) or sample.dim() < 2:
        return draw  # for the loop to refuse
    channels = sample.shape[1]
    if output.dim() != sample.dim() or output.shape[1] != 2 * channels:
        raise ValueError(
            f"FsScheduler.step: model_output is {list(output.shape)} for a sample of "
            f"{list(sample.shape)} with variance_type = {kind!r}; twice its channels are accepted"
        )
    v, at = output[:, channels:].to(state_dtype(sample)), min(loop.find(timestep), len(loop) - 1)
    if kind == "learned":
        deviation = v.sqrt()
    else:
        small, large = variances(
            *zip(loop.alpha[at : at + 2], loop.sigma[at : at + 2], strict=True)
        )
        deviation = torch.exp(0.25 * math.log(large / small) * (v + 1.0))

    def drawn(*given):
        return draw(*given) * deviation

    drawn.deviation = deviation
    return drawn


def with_clipped(
    others: dict, loop: Lookup, source: str, settings: dict, f: Tensor, timestep, sample: Tensor
) -> Tensor:
    """The model's output that predicts the bounded x0, where the step bounds it: DDIM's
    use_clipped_model_output, whose direction is that of the bounded x0.
    """
    bounds = settings.get("clip_sample") or settings.get("thresholding")
    bounds = bounds and source not in UNBOUNDED
    if not (others.get("use_clipped_model_output") and loop.compat and bounds):
        return f
    if not (isinstance(f, Tensor) and isinstance(sample, Tensor)) or f.shape != sample.shape:
        return f  # for the loop to refuse
    levels = trained_levels("vp", settings, timestep)
    p, q = (float(v[0]) for v in to_x0(PREDICTIONS[settings["prediction_type"]], *levels))
    x = sample.to(state_dtype(sample))
    x0 = p * x + q * f.to(x.dtype)
    if settings["thresholding"]:
        s = _thresholding(settings).limits(x0).view(-1, *[1] * (x.dim() - 1))
        bounded = x0.clamp(-s, s) / s
    else:
        bounded = x0.clamp(-settings["clip_sample_range"], settings["clip_sample_range"])
    return torch.where(bounded == x0, f, ((bounded - p * x) / q).to(f.dtype))


# -- inside ----------------------------------------------------------------------------------------
def _thresholding(config: dict) -> Thresholding:
    return Thresholding(config["dynamic_thresholding_ratio"], config["sample_max_value"])


def _draws(source: str, config: dict, steps: int) -> Callable[[float, float], bool] | None:
    if is_sde(config) or source in DRAWING:
        return lambda label, eta: True
    return {
        "DDPMScheduler": lambda label, eta: label > 0.0,
        UNCLIP: lambda label, eta: label > 0.0,
        "DDIMScheduler": lambda label, eta: eta > 0.0,
        CM: lambda label, eta: steps > 1,
        "DPMSolverSDEScheduler": lambda label, eta: True,  # its path's seed, in a single step too
    }.get(source)
