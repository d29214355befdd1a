"""FlowMatchEuler's step with a noise level for every token. Imports no diffusers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...runtime.arguments import state_dtype
from .loop import Loop
from .moments import Moments

ALIKE = 1e-6  # a level closer below a token's own than this is the token's own


def by_token(
    loop: Loop,
    config: dict,
    model_output: Tensor,
    timestep,
    sample: Tensor,
    tokens: Tensor,
    draw: Callable[[], Tensor],
) -> tuple[Tensor, Moments | None]:
    """x' = x + (s - s') f for tokens [B,N] at the timesteps T·s, each going to s', the loop's next
    level below its own; where the config is stochastic x' = (1 - s') (x + s f) + s' n. x, f [B,N,C]
    and n of draw(); f = x0 - eps, the other sign than in a step without tokens. Beside x' what it
    was drawn from, if it was.

    x' is float32, or float64 where x is. compat: x0 = x - s f in the stochastic step, as diffusers
    has it. ValueError or TypeError for what does not fit.
    """
    check(tokens, sample)
    loop.skip(model_output, timestep, sample)
    kind = state_dtype(sample)
    levels = loop.alpha if config["invert_sigmas"] else loop.sigma
    levels = torch.tensor(np.unique([0.0, *levels]), dtype=kind, device=sample.device)
    now = tokens.to(kind) / config["num_train_timesteps"]
    after = levels[(torch.bucketize(now - ALIKE, levels) - 1).clamp(min=0)]
    x, f, now, after = sample.to(kind), model_output.to(kind), now[..., None], after[..., None]
    if not config["stochastic_sampling"]:
        return x + (now - after) * f, None
    clean = x - now * f if loop.compat else x + now * f
    drawn = after * draw().to(kind)
    moments = Moments(lambda: [(1.0, drawn)], after.expand_as(x))
    return (1.0 - after) * clean + drawn, moments


def check(tokens: Tensor, sample: Tensor) -> None:
    """TypeError or ValueError for tokens that are not one timestep for each of the sample's."""
    if not isinstance(tokens, Tensor):
        raise TypeError(
            f"FsScheduler.step: per_token_timesteps is a {type(tokens).__name__}; a tensor [B,N], "
            "or None, and generator= are accepted"
        )
    if not isinstance(sample, Tensor):
        return  # for the loop to refuse
    whole = tuple(sample.shape[:2])
    fits = sample.dim() == 3 and tokens.dim() == 2
    if not fits or any(n not in (1, size) for n, size in zip(tokens.shape, whole, strict=True)):
        raise ValueError(
            f"FsScheduler.step: per_token_timesteps is {list(tokens.shape)} for a sample of "
            f"{list(sample.shape)}; [B,N], or [B,1], for [B,N,C] is accepted"
        )
