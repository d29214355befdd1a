"""Where a run's noise comes from: seeds and stages, given or drawn, or the caller's own draws.

A noise is (seed, stage, id), one sample's unit normals to the bit, whatever the batch or device
(`fastsample.kernels.reference.noise`):

seed     64 bits, one a sample: which image
stage    32 bits, one a sample, the same for every noise of a run: which of the runs that make it.
         Not given it is 0 for a run that begins with noise or resumes its own plan; and 1, so that
         one seed draws nothing twice, for a run that begins with an image, or with a state at the
         first point of a grid that begins below the schedule's noise end, where another run left
         off. A third run's, and any other, is the caller's to name
id       0 is the noise a run starts with; it is also what an image is noised with, and the known
         image of inpainting. From 1 on, the noises of the steps by their place in the whole grid,
         so that plan.remake(start=k), resumed, draws what the whole plan would have drawn

A plan made with start= or strength= that is entered at row 1 resumes the whole plan from there, and
at a later row its own run from an image. Where that is not so, as for an image that the caller
noised, say the stage: `Run.stages` has a run's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..kernels import transforms
from ..plan import Plan
from .arguments import (
    check_values,
    drawn,
    drawn_from,
    integer,
    readable,
    refuse_gradients,
    uploaded,
)


def drawn_seed() -> int:
    """One int64 of torch's default CPU generator, which torch.manual_seed governs: the seed of a
    call that was given none.
    """
    return int(torch.randint(-(2**63), 2**63 - 1, (), device="cpu"))


def digest(noise: Tensor) -> bytes:
    """SHA-256 over the noise as little-endian float32: what tells two noises apart."""
    numbers = noise.detach().cpu().float().contiguous().numpy().astype("<f4")
    return hashlib.sha256(numbers.tobytes()).digest()


def seed_of(noise: Tensor) -> int:
    """An int64 made of the start noise's digest: measurements on one noise draw the same, on fresh
    noise others.
    """
    transforms.refuse("seed of the noise", noise)
    return int.from_bytes(digest(noise)[:8], "little", signed=True)


def seeds(seed, batch: int, device, needed: bool, samples: Sequence[int] | None = None) -> Tensor:
    """int64 [B] of an int s (s, s+1, ..., or s + k for the places k in the whole that a window's
    samples have), B ints in [-2^63, 2^64), or an int64 tensor [B]. None: s is drawn if needed, else
    0 each.
    """
    if seed is None:
        if not needed:
            return torch.zeros(batch, dtype=torch.int64, device=device)
        # a graph draws otherwise, and Inductor cannot count beyond int64
        if torch.compiler.is_dynamo_compiling():
            return torch.compiler.disable(seeds)(seed, batch, device, needed, samples)
        _may_draw(samples)
        seed = drawn_seed()
    if isinstance(seed, Tensor) and seed.dim():
        whole = not (seed.is_floating_point() or seed.is_complex() or seed.dtype == torch.bool)
        if not whole or seed.shape != (batch,):
            raise ValueError(
                f"Run: seed is {seed.dtype} {list(seed.shape)}; int64 [{batch}] is accepted"
            )
        return uploaded(seed.long(), device)
    first = integer(seed)
    if first is None and (
        not isinstance(seed, (Sequence, np.ndarray)) or isinstance(seed, (str, bytes))
    ):
        raise TypeError(
            f"Run: seed is a {type(seed).__name__}; an int, {batch} ints or an int64 tensor "
            f"[{batch}] is accepted"
        )
    places = range(batch) if samples is None else samples
    values = [first + b for b in places] if first is not None else [integer(v) for v in seed]
    if len(values) != batch:
        raise ValueError(
            f"Run: seed holds {len(values)} values for a batch of {batch}; one int for each sample "
            "is needed"
        )
    if None in values:
        raise TypeError(
            f"Run: seed holds {seed[values.index(None)]!r} for sample {values.index(None)}; an int "
            "for each sample is accepted"
        )
    if values and not -(2**63) <= min(values) <= max(values) < 2**64:
        raise ValueError(
            f"Run: seed spans {min(values)}..{max(values)}; 64-bit integers are accepted"
        )
    signed = [(v + 2**63) % 2**64 - 2**63 for v in values]
    return torch.tensor(signed, dtype=torch.int64, device="cpu").to(device, non_blocking=True)


def _may_draw(samples: Sequence[int] | None) -> None:
    """Refuse to draw a seed where it would be no call's own."""
    if name := transforms.active():
        raise ValueError(
            f"Run: no seed is given under {name}, which would keep one draw for every call; pass "
            "seed="
        )
    if samples is not None:
        raise ValueError(
            "Run: noise_source is a window and no seed is given; the whole's is accepted, by which "
            "all who hold a part of it draw the same"
        )


def stages(stage: object, plan: Plan, first: int, batch: int, device) -> Tensor | None:
    """int32 [B] of a stage, 0 to 2^32 - 1, of B of them, or of an int64 tensor [B], whose low 32
    bits count, as the kernels read them; None for stage 0. None given: that of a run that begins at
    row `first` of the plan.
    """
    if isinstance(stage, Tensor) and stage.dtype == torch.int64 and stage.shape == (batch,):
        low = stage & 0xFFFFFFFF
        return uploaded(low - (low >> 31 << 32), device).int()
    stage = default_stage(plan, first) if stage is None else stage
    listed = isinstance(stage, (Sequence, np.ndarray)) and np.shape(stage) == (batch,)
    numbers = [integer(v) for v in (stage if listed else [stage])]
    if not all(v is not None and 0 <= v < 2**32 for v in numbers):
        raise ValueError(
            f"Run: stage is {stage!r:.60}; a whole number from 0 to 2^32 - 1, {batch} of them or "
            f"an int64 tensor [{batch}] is accepted"
        )
    if not any(numbers):
        return None
    signed = [v - (v >> 31 << 32) for v in numbers]
    if not listed:  # a graph keeps its batch open
        return torch.full((batch,), *signed, dtype=torch.int32, device=device)
    return torch.tensor(signed, dtype=torch.int32, device="cpu").to(device, non_blocking=True)


def default_stage(plan: Plan, first: int) -> int:
    """The stage of a run that begins at this row, where none is given."""
    if plan.sigma[0] == 0:  # made for an image; with level= on a grid of its own
        return int(first != 1 or "level" in plan.note)
    return int(first == 1 and "noise_end" in plan.note)


def silent(noise_scale) -> bool:
    """Is this scale of the noise, as it was given, 0 throughout, and not to be learned? One on a
    device is not looked at, which would wait for it.
    """
    if noise_scale is None:
        return False
    scale = torch.as_tensor(noise_scale)
    if scale.requires_grad or scale.device.type != "cpu" or not readable(True, scale):
        return False
    return not bool(scale.any())


def seeded(plan: Plan, first: int, noise: Tensor | None, source, still: bool, masked: bool) -> bool:
    """Do the rows from `first` on draw from the seeds: noise that nobody gave? still: none of it
    would be seen.
    """
    if source is not None or plan.L == 0 or still:
        return False
    return bool(drawn_from(plan, first, masked) - ({0} if noise is not None else set()))


def draws(
    given,
    plan: Plan,
    size: Sequence[int],
    dtype: torch.dtype,
    device,
    masked: bool,
    initial: Tensor | None,
    gradients: bool = False,
) -> Draws | None:
    """What the caller draws, or None where Philox draws everything.

    given: a callable(row, id), or tensors in the order of first draw. initial: the noise the caller
    started the run with; it is every draw of id 0.
    """
    if given is None and (initial is None or not (plan.ids == 0).any()):
        return None
    rows = ids(plan, masked)
    order = list(dict.fromkeys(k for row in rows for k in row if k is not None))
    # a copy: the caller's own tensor may change during the run
    initial = initial.to(dtype).clone() if initial is not None and 0 in order else None
    if given is None and initial is None:
        return None

    checked = partial(_draw, dtype=dtype, device=device, gradients=gradients)
    held = {} if initial is None else {0: initial}
    if given is not None and not callable(given):
        left = [k for k in order if k not in held]
        if not isinstance(given, Sequence) or len(given) != len(left):
            count = len(given) if isinstance(given, Sequence) else f"a {type(given).__name__}"
            raise ValueError(
                f"Run: noise_source holds {count} draws; a callable(row, id) or {len(left)} "
                "tensors, one for each noise drawn, are accepted"
            )
        held |= {k: checked(f"noise {k}", v, size) for k, v in zip(left, given, strict=True)}
    return Draws(rows, held, given if callable(given) else None, checked, size)


def ids(plan: Plan, masked: bool) -> list[list[int | None]]:
    """For each row the noise ids that its L operands draw."""
    return [drawn(plan, row, masked) for row in range(plan.rows)]


class Draws(NamedTuple):
    """row -> the caller's draws for its L noise operands, None for those that Philox makes.

    rows: their ids. held: those that were handed over, [B,*] by id; ask: what gives the others, a
    callable(row, id), and checked(where, value, size) what looks at them.
    """

    rows: list[list[int | None]]
    held: dict[int, Tensor]
    ask: Callable | None = None
    checked: Callable | None = None
    size: Sequence[int] = ()

    def __call__(self, row: int) -> list[Tensor | None]:
        return [self._draw(row, k) for k in self.rows[row]]

    def _draw(self, row: int, k: int | None) -> Tensor | None:
        if k is None or k in self.held or self.ask is None:
            return self.held.get(k)
        return self.checked(f"row {row}", self.ask(row, k), self.size)

    def selected(self, index: Tensor) -> Draws:
        """The draws of these samples [n]."""
        held = {k: noise.index_select(0, index) for k, noise in self.held.items()}
        return self._replace(held=held, size=(len(index), *self.size[1:]))


def _draw(
    where: str, value: object, size, *, dtype: torch.dtype, device, gradients: bool
) -> Tensor:
    """A draw of the caller's [B,*] in the state dtype, checked."""
    fits = isinstance(value, Tensor) and value.shape == tuple(size) and value.is_floating_point()
    if not fits or value.device.type != torch.device(device).type:
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"Run: noise_source gave {shape} for {where}; a floating tensor of {list(size)} on "
            f"{device} is needed"
        )
    if not gradients:
        transforms.refuse("Run: noise_source", value)
    refuse_gradients("noise_source", value, gradients)
    if readable(gradients, value):
        check_values("noise_source", value)
    return value.to(dtype).contiguous()
