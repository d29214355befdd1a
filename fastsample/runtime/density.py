"""Density: the normal distribution of the state that a row which draws noise leads to.

x' = mean + std n with n unit normal, so for a sample of N numbers

    log p(x') = -1/2 sum ((x' - mean) / std)^2 - N (log std + 1/2 log 2 pi)

which policy gradients are made of (DDPO, Black et al. 2023, arXiv:2305.13301; Flow-GRPO, Liu et al.
2025, arXiv:2505.05470; both divide it by N).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import transforms
from ..kernels.backend import bound
from ..kernels.narrow import wide
from ..kernels.reference import step as definition
from ..plan import Plan
from . import arguments, outputs
from .cursor import Cursor
from .pool import Pool


class Density(Cursor):
    """A cursor that says how its next state is distributed."""

    @property
    def std(self) -> Tensor:
        """Standard deviation [B] of the noise that the current row draws for x' (where no mask
        keeps it), 0 where it draws none; mean() is its mean.
        """
        own = self._pool
        std = own.x.new_full((own.batch,), spread(self.plan, self.row, own.mask is not None))
        return std if own.noise_scale is None else std * own.noise_scale.abs()

    def mean(self, f: Tensor | Sequence[Tensor | None]) -> Tensor:
        """x' [B,*] of the current row at noise scale 0, without advancing; gradients reach f.
        Refused where the row re-uses an earlier draw, which belongs to the mean: in most rows of an
        inpainting run, for the noise of the known image.
        """
        transforms.refuse("Run.mean", *(f if isinstance(f, (list, tuple)) else (f,)))
        if self.done:
            raise IndexError("Run.mean: the run is done; there is no row left to take the mean of")
        own, row = self._pool, self.row
        if row + 1 < self.end and self._stops[row + 1]:
            raise ValueError(
                f"Run.mean: row {row + 1} asks no model and runs in one step with row {row}, whose "
                "x' no run shows; a row before another call is accepted"
            )
        if repeated := again(self.plan, row, own.mask is not None):
            name = min(repeated)
            what = f"re-uses noise {name} of an earlier row"
            if own.mask is not None and name not in again(self.plan, row, masked=False):
                what = f"noises the known image with noise {name} of an earlier row"
            raise ValueError(
                f"Run.mean: row {row} {what}, and its mean at noise scale 0 would leave that draw "
                "out; a row, or a run without mask=, that draws all its noise anew is accepted"
            )
        f = self._outputs(f, gradients=True)
        if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in f):
            self._stand(own.copied())  # the next step leaves alone what the model's gradient needs
            return mean(own, row, f)
        still = own.copied(noise_scale=own.x.new_zeros(own.batch), preview=None, model_input=None)
        bound(self._choice, still)(row, f, self._noise(row))
        return still.x

    def log_prob(self, f: Tensor | Sequence[Tensor | None], x: Tensor | None = None) -> Tensor:
        """Log-density [B] float64, summed over a sample, of x [B,*] as the state that the current
        row leads to (None: of the one that step(f) will lead to), without advancing; gradients
        reach f and x. Refused where std is 0, and where mean is.
        """
        expected, spread = self.mean(f), self.std
        if not bool(spread.all()):
            raise ValueError(
                f"Run.log_prob: row {self.row} adds no noise to sample "
                f"{int((spread == 0).nonzero()[0])}, whose next state has no density; a row where "
                "run.std > 0 is accepted"
            )
        if x is None:
            x = self._ahead(f)
        elif not isinstance(x, Tensor) or x.shape != expected.shape or x.device != expected.device:
            raise ValueError(
                f"Run.log_prob: x is {outputs.words(x)}; a state of {list(expected.shape)} on "
                f"{expected.device} is accepted"
            )
        transforms.refuse("Run.log_prob", x)
        return log_prob(x, expected, spread)

    def _ahead(self, f) -> Tensor:
        """The state that step(f) leads to."""
        if callable(self._source[0]):
            raise ValueError(
                "Run.log_prob: noise_source is a callable, which is not asked for one draw twice; "
                "pass x=, or noise_source= as tensors"
            )
        ahead = self._pool.copied(preview=None, model_input=None)
        f = [v if v is None else v.detach() for v in self._outputs(f, gradients=True)]
        bound(self._choice, ahead)(self.row, f, self._noise(self.row))
        return ahead.x


def mean(pool: Pool, row: int, f: Sequence[Tensor | None], x: Tensor | None = None) -> Tensor:
    """x' [B,*] of a row of the pool's table at noise scale 0, in plain torch, so that gradients
    reach the G outputs f [B,*] and x [B,*], the state it begins at (None: the pool's).
    """
    at, shape = pool.table.layout, pool.table.shapes[row]
    still = shape._replace(
        reads=shape.reads & (1 << at.noise(0)) - 1, known_reads=shape.known_reads & 1
    )
    kept, state = shape.slots_read(at), pool.x.dtype
    return definition.row(
        still,
        at,
        pool.table.f[row],
        pool.x if x is None else x,
        [pool.slots[s] if s in kept else None for s in range(at.S)],
        [v if v is None else v.to(state) for v in f],
        [None] * at.L,
        pool.scale,
        pool.weights,
        pool.bound,
        pool.mask,
        pool.known,
    )[0]


def spread(plan: Plan, row: int, masked: bool) -> float:
    """Standard deviation of the noise that a row of the plan is the first to draw for x', at noise
    scale 1; 0 for a deterministic row. masked: the run has a mask.
    """
    at, weights = plan.layout, defaultdict(float)
    earlier = _earlier(plan, row, masked)
    for k, name in enumerate(arguments.drawn(plan, row, masked=False)):
        if name is not None and name not in earlier:
            weights[name] += plan.M[row, 0, at.noise(k)]
    return math.hypot(*weights.values())


def log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log p [B] float64 of states x [B,*] under means [B,*] and standard deviations [B] > 0, summed
    over a sample; on the host where their device has no float64.
    """
    squares, std, n = (wide(x) - wide(mean)).square(), wide(std), math.prod(x.shape[1:])
    squares = squares.flatten(1).sum(1) if x.dim() > 1 else squares
    return -0.5 * squares / std.square() - n * (std.log() + 0.5 * math.log(2 * math.pi))


def _earlier(plan: Plan, row: int, masked: bool) -> set[int]:
    """Noise ids that rows before this one draw."""
    return {k for i in range(row) for k in arguments.drawn(plan, i, masked)} - {None}


def again(plan: Plan, row: int, masked: bool) -> set[int]:
    """Noise ids that the row reads and an earlier one drew; masked: with the known image's."""
    return _earlier(plan, row, masked) & set(arguments.drawn(plan, row, masked))
