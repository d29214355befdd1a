"""What a request brings beside its plan: checked and brought into the form the kernels read. Every
refusal is one sentence, before any kernel runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..kernels import native, transforms
from ..kernels.backend import STATES
from ..plan import Plan
from ..plan.given import integer
from ..plan.provenance import on_schedule

MODELS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# a unit normal of 1,024 numbers leaves this range by chance once in 10^19
STD_RANGE, STD_ELEMENTS = (0.8, 1.25), 1024
LOW, HIGH = (bound**2 for bound in STD_RANGE)


def dtypes(where: str, state: object, model: object) -> None:
    """Refuse a state dtype outside STATES and a model dtype outside MODELS (None: not said yet)."""
    if state not in STATES or model not in (None, *MODELS):
        raise TypeError(
            f"{where}: state_dtype {state}, model_dtype {model}; a float32 or float64 state and a "
            "floating model are accepted"
        )


def state_dtype(given: Tensor | None) -> torch.dtype:
    """The state's dtype where nobody said it: float32, float64 for a float64 tensor."""
    return torch.float64 if getattr(given, "dtype", None) == torch.float64 else torch.float32


def counted(name: str, value: object) -> int:
    """A whole number of at least 1."""
    number = integer(value)
    if number is None or number < 1:
        raise ValueError(f"Run: {name} is {value!r:.60}; a whole number of at least 1 is accepted")
    return number


def chunks(where: str, count: int, size: object) -> list[slice]:
    """`count` samples in order, at most `size` of them at a time."""
    if (integer(size) or 0) < 1:
        raise ValueError(
            f"{where}: batch_size={size!r:.60}; a whole number of at least 1 is accepted"
        )
    size = integer(size)
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def first_seed(where: str, seed: object) -> int:
    """The seed of a first sample, from which the others count."""
    number = integer(seed)
    if number is None:
        raise TypeError(f"{where}: seed is {seed!r:.60}; a whole number, or None, is accepted")
    return number


def start(
    noise: Tensor | None,
    latent: Tensor | None,
    shape: Sequence[int] | None,
    device,
    image: bool,
    gradients: bool = False,
    look: bool = True,
) -> tuple[Tensor | None, tuple[int, ...], torch.device]:
    """The tensor a run starts from (None: to be drawn), the batch's shape [B,*], and its device.
    image: the plan begins from an image. look: its numbers are looked at where they can be at
    once (on a device by whoever reads the end of the run).
    """
    given = [v is not None for v in (noise, latent, shape)]
    both = image and given == [True, True, False]  # the image, and the noise that row 0 adds to it
    if not both and sum(given) != 1:
        raise ValueError(
            "Run: pass exactly one of noise= (unit normal), latent= (a state, with start=; an "
            "image for a plan made with start=, which may take noise= beside it) and shape= (noise "
            "is drawn from the seeds)"
        )
    device = None if device is None else _device(device)
    if shape is not None:
        size = tuple(map(integer, shape)) if isinstance(shape, (Sequence, np.ndarray)) else ()
        if len(size) < 1 or any(n is None or n < 0 for n in size):
            raise ValueError(
                f"Run: shape is {shape!r}; a batch size and sizes, whole numbers of 0 or more, are "
                "accepted"
            )
        if device is not None and numberless(device):
            raise ValueError("Run: device='meta' holds no numbers; a device that does is accepted")
        return None, size, device or torch.device("cpu")
    for name, given in (("noise", noise), ("latent", latent)):
        if given is not None:
            _checked(name, given, device, gradients, look)
    if both and (noise.shape != latent.shape or noise.device != latent.device):
        raise ValueError(
            f"Run: noise is {list(noise.shape)} on {noise.device} and latent {list(latent.shape)} "
            f"on {latent.device}; one shape is accepted"
        )
    given = noise if latent is None else latent
    return given, tuple(given.shape), given.device


def place(
    noise: Tensor | None, latent: Tensor | None, shape: Sequence[int] | None, device
) -> tuple[int, torch.device]:
    """Batch size and device of the run that these start, without a look at the numbers; what starts
    none is refused as by `start`.
    """
    given = noise if latent is None else latent
    if isinstance(given, Tensor) and given.dim() > 0 and not given.is_nested:
        return given.shape[0], given.device
    _, size, device = start(noise, latent, shape, device, image=True)
    return size[0], device


def numberless(device: torch.device) -> bool:
    """Have its tensors shapes alone?"""
    return device.type == "meta"


def _device(wish: object) -> torch.device:
    """The device, which this torch can put a tensor on."""
    try:
        return torch.empty(0, device=wish).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"Run: device={wish!r} cannot be used by this torch; a device it finds, such as 'cpu', "
            "is accepted"
        ) from error


def _checked(name: str, given: object, device, gradients: bool, look: bool) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(f"Run: {name} is a {type(given).__name__}; a torch tensor [B, *] is needed")
    dense = given.layout == torch.strided and not given.is_nested
    if (
        not dense
        or given.dtype not in MODELS
        or given.dim() < 1
        or (numberless(given.device) and not gradients)
    ):
        kind = "nested" if given.is_nested else f"{list(given.shape)} ({given.layout})"
        where = " without numbers, on the device meta" if numberless(given.device) else ""
        raise TypeError(
            f"Run: {name} is {given.dtype} {kind}{where}; a dense tensor [B, *] of float32, "
            "float64, bfloat16 or float16 is accepted"
        )
    if device is not None and device.type != given.device.type:
        raise ValueError(
            f"Run: {name} is on {given.device} and device={device}; move it, or leave device out"
        )
    refuse_gradients(name, given, gradients)
    if look and given.device.type == "cpu" and readable(gradients, given):
        check_values(name, given)


def readable(gradients: bool, given: Tensor) -> bool:
    """Are there values to check? Without gradients yes: whatever hides them has been refused by
    then.
    """
    return not gradients or transforms.active(given) is None


def refuse_gradients(name: str, given: Tensor, kept: bool) -> None:
    if given.requires_grad and not kept:
        raise RuntimeError(
            f"Run: {name} requires grad, and a Run keeps none; detach it, or use Sampler(..., "
            "differentiable=True)"
        )


def check_values(name: str, given: Tensor, energy: float | None = None, where: str = "Run") -> None:
    """Refuse non-finite values, and noise that is not a unit normal by its standard deviation: by
    one sum of squares (energy, where it is known), and only where that is amiss by a closer look.
    """
    n, energy = given.numel(), float(sum_of_squares(given)) if energy is None else energy
    unit = name == "noise" and n >= STD_ELEMENTS
    low, high = usual(n if unit else 0)
    if low <= energy <= high:
        return
    bad = ~torch.isfinite(given)
    if bool(bad.any()):
        bad = bad.flatten(1).any(1) if given.dim() > 1 else bad
        samples = ", ".join(map(str, bad.nonzero().flatten().tolist()[:8]))
        raise ValueError(
            f"{where}: {name} holds NaN or Inf in sample {samples}; finite numbers are needed"
        )
    std = float(given.detach().float().std()) if unit else 1.0
    if not STD_RANGE[0] <= std <= STD_RANGE[1]:
        raise ValueError(
            f"Run: noise has standard deviation {std:.4g}, a unit normal has 1; already scaled by "
            "sigma? pass latent= with start=1 (row 0 multiplies by plan.init_scale); meant to be "
            "none (a temperature, a mean, padding)? pass plan.init_scale times it there"
        )


def usual(n: int) -> tuple[float, float]:
    """The least and the greatest sum of squares of n unit normals that needs no closer look."""
    return (LOW * n, HIGH * n) if n >= STD_ELEMENTS else (0.0, sys.float_info.max)


def sum_of_squares(v: Tensor) -> float | Tensor:
    """sum v², NaN or Inf where an element is; a tensor where reading it would wait for a device."""
    if v.device.type == "cpu" and native.MISSING is None and v.is_contiguous():
        return native.energy(v)
    flat = v.detach().flatten()
    flat = flat if flat.dtype in STATES else flat.float()
    return torch.dot(flat, flat)


def judged(check: object) -> bool:
    """Are noise and status looked at? check: "end" or None."""
    if check not in ("end", None):
        raise ValueError(f"Run: check is {check!r}; 'end' and None are accepted")
    return check is not None


def entry(
    plan: Plan, latent: bool, row: int | None, noise: bool = False, masked: bool = False
) -> int:
    """The first row to run: 0 for noise and for the image of a plan made with start=, else the
    entry a state is handed in at, which is always said. noise: some was given, which a later row
    than 0 must read.
    """
    image = plan.sigma[0] == 0
    if row is not None and integer(row) is None:
        raise TypeError(
            f"Run: start is {row!r}; a row number of the plan, one of plan.entries, is accepted "
            "(an image begins with strength=, the share of the steps, or level=, sigma/alpha)"
        )
    if not latent:
        if image:
            raise ValueError(
                "Run: this plan was made with start= and begins from an image; pass latent="
            )
        if row not in (None, 0):
            raise ValueError(
                f"Run: start={row} needs the state at that row (row 1: noise times "
                "plan.init_scale); pass latent=, or noise= without start"
            )
        return 0
    entries = [k for k in plan.entries if k > 0 or image]
    if row is None and not image:
        on_schedule("Run", plan, "latent= without start=")
        raise ValueError(
            "Run: latent= is given without start= and this plan was made for noise; to resume, "
            f"pass start= (one of {entries}) with the state at that row, which stands at alpha x0 "
            f"+ sigma eps (row 1: {plan.alpha[1]:.4g} x0 + {plan.sigma[1]:.4g} eps; noise alone "
            f"begins there as plan.init_scale = {plan.init_scale:.4g} times itself); to begin from "
            "an image, pass the clean image as latent= with strength= (the share of the steps) or "
            "level= (sigma/alpha), or to a plan of plan.remake(start=...)"
        )
    row = 0 if row is None else integer(row)
    if row > 1:
        on_schedule("Run", plan, f"latent= with start={row}")
    if row not in entries:
        raise ValueError(
            f"Run: start={row} is not an entry of this plan (a later row reads history, or there "
            f"is no such row); entries for a latent are {entries}; elsewhere make the plan with "
            "start=, or use plan.remake(start=...)"
        )
    if noise and row > 0 and 0 not in drawn_from(plan, row, masked):
        raise ValueError(
            f"Run: noise= stands beside the state at row {row}, and no row from there on reads it; "
            "leave it out, or start= to have the image noised with it"
        )
    return row


def _per_sample(
    name: str, value, batch: int, columns: int | None, dtype: torch.dtype, device, gradients: bool
) -> Tensor:
    """[B] or [B, columns] finite numbers of a number, `columns` numbers, or a tensor. One that lies
    on the device is not looked at, which would wait for it: what is not finite ends in the status.
    """
    here = not isinstance(value, Tensor) or torch.device(device).type == "cpu"
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        raise TypeError(f"Run: {name} is {value!r:.60}; a number or a tensor is accepted")
    try:
        # True is no scale of 1: whoever wrote it meant another argument
        if _truth(value):
            raise TypeError
        value = torch.as_tensor(value, dtype=dtype, device="cpu" if here else value.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"Run: {name} is {value!r}; a number or a tensor is accepted") from error
    refuse_gradients(name, value, gradients)
    shape = (batch,) if columns is None else (batch, columns)
    if columns == 1 and value.shape == (batch,):
        value = value[:, None]
    if value.dim() > 0 and value.shape != shape and (columns is None or value.shape != (columns,)):
        raise ValueError(
            f"Run: {name} has shape {list(value.shape)}; a number or {list(shape)} is accepted"
        )
    look = value.device.type == "cpu" and readable(gradients, value)
    if look and not bool(torch.isfinite(value).all()):
        raise ValueError(f"Run: {name} is not finite; finite numbers are accepted")
    return uploaded(value.expand(shape), device)


def _truth(value: object) -> bool:
    """Is it True or False, or a tensor or an array of them?"""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("torch.bool", "bool")


def uploaded(value: Tensor, device) -> Tensor:
    """The value on the device in memory that is the run's own, which the host does not wait for."""
    own = value.clone(memory_format=torch.contiguous_format)
    return own.to(device, non_blocking=value.device.type == "cpu")


def scales(
    plan: Plan, guidance, batch: int, dtype: torch.dtype, device, gradients: bool = False
) -> Tensor | None:
    """Guidance scales [B, K] for a plan with K of them."""
    if plan.K == 0:
        if guidance is not None:
            raise ValueError(
                "Run: guidance is given and the plan has no guidance scale; make it with "
                "fastsample.guidance.guided(plan)"
            )
        return None
    if guidance is None:
        raise ValueError(
            f"Run: the plan takes {plan.K} guidance scale(s) and guidance is missing; pass "
            "guidance="
        )
    return _per_sample("guidance", guidance, batch, plan.K, dtype, device, gradients)


def noise_scales(
    value, batch: int, dtype: torch.dtype, device, gradients: bool = False
) -> Tensor | None:
    if value is None:
        return None
    return _per_sample("noise_scale", value, batch, None, dtype, device, gradients)


def drawn(plan: Plan, row: int, masked: bool = True) -> list[int | None]:
    """Noise id of each of the L noise operands that the row draws, None for those it does not."""
    draws = plan.program.rows[row].draws(plan.layout, masked)
    return [k if drawn else None for k, drawn in zip(plan.ids[row].tolist(), draws, strict=True)]


def drawn_from(plan: Plan, first: int, masked: bool) -> set[int]:
    """Noise ids that the rows from `first` on draw."""
    rows = range(first, plan.rows - 1)
    return {k for row in rows for k in drawn(plan, row, masked) if k is not None}


@contextmanager
def named(where: str, **words: str) -> Iterator[None]:
    """What these checks refuse as "Run: ..." is refused in the name of another door, and of what
    Run calls latent, say, by the door's own word: latent="noise".
    """
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:
        head, _, said = str(error).partition(": ")
        if head not in ("Run", "Sampler"):
            raise
        first, _, rest = said.partition(" ")
        raise type(error)(f"{where}: {words.get(first, first)} {rest}") from None
