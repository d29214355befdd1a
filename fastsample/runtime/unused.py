"""Unused: what a caller gives and a run would never read is refused, where leaving it out silently
would give another result than was meant.

Accepted, because they are common and change nothing: a seed or a stage where nothing is drawn, a
noise_source of such a run whose start is given (and k_sample's noise_sampler), a noise_scale of 0
or 1, batched_guidance with one branch, a device where the noise lies on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..kernels import transforms
from ..plan import Plan
from . import arguments


def refuse_models(plan: Plan, models: Sequence) -> None:
    """ValueError for models beyond those that some row of the plan asks."""
    asked = sorted({*plan.call[plan.call >= 0].tolist()})
    if len(models) > max(asked, default=0) + 1:
        rows = plan.call.tolist()
        raise ValueError(
            f"Sampler: {len(models)} models are given and the plan asks model "
            f"{', '.join(map(str, asked))} alone, by call={rows}; one model a number is accepted, "
            "and fs.solvers.experts(plan, boundary=...) has two asked, either side of a noise level"
        )


def refuse_noise(plan: Plan, words: dict, given: bool) -> None:
    """ValueError for a noise_scale of a plan that draws nothing, and for a callable noise_source
    that is not asked even for what the run starts with. words: what a Run is begun with; given: so
    is its start.
    """
    scale, source = words["noise_scale"], words["noise_source"]
    alone = callable(source) and not given
    if (scale is None and not alone) or arguments.drawn_from(plan, 0, words["mask"] is not None):
        return
    if scale is not None and not _idle(scale):
        raise ValueError(
            f"Run: noise_scale is {scale!r:.60} and no row of this plan draws noise (that which a "
            "run starts with is not scaled by it); leave it out, or pass latent= with start=1, "
            f"{'a state' if plan.sigma[0] == 0 else 'plan.init_scale times noise'} of your size"
        )
    if alone:
        raise ValueError(
            "Run: noise_source is a callable, no row of this plan asks it for noise, and what the "
            "run starts with is drawn from its seeds; leave it out, or pass noise= too"
        )


def _idle(scale: object) -> bool:
    """Is it 0 or 1 throughout, as far as can be seen without waiting?"""
    scale = torch.as_tensor(scale)
    if scale.device.type != "cpu" or transforms.active(scale) is not None:
        return False
    return bool(((scale == 0) | (scale == 1)).all())
