"""The mask and the known image of a request, checked and brought into the form the kernels read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..plan import Plan
from ..plan.provenance import on_schedule
from . import arguments


def blend(
    plan: Plan,
    mask,
    known,
    size: Sequence[int],
    dtype: torch.dtype,
    device,
    gradients: bool = False,
    wait: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Mask and known image in the state dtype, [B,*] or [1,*]. The mask may be smaller than a
    sample (size 1 where it repeats). wait: numbers on a device are looked at now, else by `looks`.
    """
    if mask is None and known is None:
        return None, None
    if mask is None or known is None:
        raise ValueError(
            f"Run: {'known' if mask is None else 'mask'} is given without "
            f"{'mask' if mask is None else 'known'}; inpainting needs both"
        )
    if not plan.known_reads.any():
        on_schedule("Run", plan, "mask= and known=")
        raise ValueError(
            "Run: mask and known are given and no row of this plan blends a known image; "
            "plan.remake(inpaint=True) is accepted"
        )
    for name, value in (("mask", mask), ("known", known)):
        if not isinstance(value, Tensor) or value.device.type != torch.device(device).type:
            raise ValueError(f"Run: {name} must be a tensor on {device}")
        arguments.refuse_gradients(name, value, gradients)
    mask = mask.to(dtype)
    now = wait or mask.device.type == "cpu"
    if now and arguments.readable(gradients, mask):
        check_mask(mask, float(_outside(mask)))
    if mask.dim() != len(size) or any(
        m not in (1, n) for m, n in zip(mask.shape, size, strict=True)
    ):
        raise ValueError(
            f"Run: mask has shape {list(mask.shape)} for a batch of {list(size)}; the same sizes, "
            "or 1 where it repeats, are accepted"
        )
    if known.shape not in (tuple(size), (1, *size[1:])) or not known.is_floating_point():
        raise ValueError(
            f"Run: known is {known.dtype} {list(known.shape)} for a batch of {list(size)}; that "
            "shape or a batch of 1 is accepted"
        )
    if now and arguments.readable(gradients, known):
        arguments.check_values("known", known)
    return mask.expand(mask.shape[0], *size[1:]).contiguous(), known.to(dtype).contiguous()


def looks(mask: Tensor, known: Tensor) -> list[tuple[Callable[[float], None], Tensor]]:
    """What `blend` left to be looked at on a device: a number there, and what refuses it."""
    values = partial(arguments.check_values, "known", known), arguments.sum_of_squares(known)
    return [(partial(check_mask, mask), _outside(mask)), values]


def _outside(mask: Tensor) -> Tensor:
    """How far the mask leaves [0, 1]; NaN where it is."""
    return (mask - mask.clamp(0, 1)).detach().abs().sum()


def check_mask(mask: Tensor, outside: float) -> None:
    if outside != 0:
        raise ValueError(
            f"Run: mask spans {float(mask.min()):.4g}..{float(mask.max()):.4g}; 0 (sample) to 1 "
            "(keep the known image) is accepted"
        )
