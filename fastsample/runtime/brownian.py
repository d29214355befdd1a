"""Brownian-path noise: however many steps a run takes, its noises are increments of one path, so
that runs of more and of fewer steps follow one another.

    source = fs.brownian()
    few, many = (fs.Sampler(plan, model)(noise=z, seed=7, noise_source=source) for plan in plans)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.backend import filling
from ..plan import Plan
from ..plan.given import reals
from ..plan.steps import spans

# decimal places to which a path tells its points apart: in s, and in rho as k-diffusion has it
PLACES, PUBLISHED = 9, 6
SLACK = 1e-9  # relative: a level this far outside a span is at its end, but for rounding


@dataclass(frozen=True)
class Brownian:
    """What `brownian` returns. span: of rho, or None for s in [0, 1]; parts: of a run's plan, the
    two points that each noise id lies between, the end first.
    """

    span: tuple[float, float] | None = None
    parts: dict[int, tuple[float, float]] | None = None
    samples = None  # each has the seed that it has without a path

    def over(self, size: Sequence[int], plan: Plan) -> Brownian:
        """The same for a batch of this size [B,*], whose noises are this plan's."""
        return self.on(plan)

    def on(self, plan: Plan) -> Brownian:
        """The same for a run of this plan."""
        over, last, parts = spans(plan), None, {}
        for k, (first, after) in over.items():
            begin, end = (self._point(plan, row) for row in (first, after))
            if not end < begin <= (begin if last is None else last):
                raise ValueError(
                    f"Run: noise_source is a Brownian path, and row {after - 1} of this plan draws "
                    f"noise {k} between sigma/alpha {_rho(plan, first):.4g} and "
                    f"{_rho(plan, after):.4g}, going up or where another is drawn; plans whose "
                    "noises follow one another down the levels are accepted"
                )
            parts[k], last = (end, begin), end
        return replace(self, parts=parts)

    def _point(self, plan: Plan, row: int) -> float:
        """Where the path is as this row begins."""
        alpha, sigma = float(plan.alpha[row]), float(plan.sigma[row])
        if self.span is None:
            return sigma / (alpha + sigma)
        low, high = self.span
        if not low * (1.0 - SLACK) <= (rho := _rho(plan, row)) <= high * (1.0 + SLACK):
            raise ValueError(
                f"Run: noise_source is a Brownian path over sigma/alpha from {low:.6g} to "
                f"{high:.6g}, and row {row} of this plan is at {rho:.6g}; levels inside, or a path "
                "without span=, are accepted"
            )
        return min(max(rho, low), high)

    def selected(self, index: Sequence[int]) -> Brownian:
        return self

    def noise(self, seed: Tensor, stage: Tensor | None, id_: int, like: Tensor) -> Tensor:
        """The noise id_ of samples with these seeds and stages [B], as like [B,*]: the path's, or
        what is drawn without one where no step adds it (the noise that a run or an image starts
        with).
        """
        seed, stage = seed.cpu(), None if stage is None else stage.cpu()
        if id_ not in self.parts:
            out = torch.empty(like.shape, dtype=like.dtype, device="cpu")
            filling(like.dtype).module.fill(out, seed, id_, stage)
            return out.to(like.device)
        stages = [0] * len(seed) if stage is None else [s % 2**32 for s in stage.tolist()]
        pairs = zip(seed.tolist(), stages, strict=True)
        out = [self._increment(s % 2**64 + (k << 64), id_, like.shape[1:]) for s, k in pairs]
        return torch.stack(out).to(like.device, like.dtype) if out else torch.empty_like(like)

    def _increment(self, entropy: int, id_: int, size: Sequence[int]) -> Tensor:
        """(W(end) - W(begin))/sqrt(begin - end) on the host, float32 as like as the path of any
        other dtype.
        """
        (low, high), (end, begin) = self.span or (0.0, 1.0), self.parts[id_]
        places = PLACES if self.span is None else PUBLISHED
        start = torch.zeros(size, dtype=torch.float32, device="cpu")
        tree = _torchsde().BrownianTree(low, start, high, entropy=entropy, tol=10.0**-places)
        bottom, top = round(low, places), round(high, places)  # it warns of what lies beyond
        return -tree(max(end, bottom), min(begin, top)) / (begin - end) ** 0.5


def _rho(plan: Plan, row: int) -> float:
    alpha, sigma = float(plan.alpha[row]), float(plan.sigma[row])
    return sigma / alpha if alpha else float("inf")


def _torchsde():
    try:
        import torchsde
    except ImportError as error:
        raise ImportError(
            "brownian: torchsde, which has the paths, is not installed; pip install "
            "'fastsample[brownian]'"
        ) from error
    return torchsde


def brownian(*, span: Sequence[float] | None = None) -> Brownian:
    """noise_source= of a run whose noises are increments of one Brownian path a sample,

        n = (W(end) - W(begin)) / sqrt(|end - begin|)

    over the part of the way on which a step adds the noise. The path runs in
    s = sigma/(alpha + sigma), from 1 to 0 on every schedule; with span = (low, high) in
    rho = sigma/alpha between these levels, and n is then what k-diffusion's
    BrownianTreeNoiseSampler(x, low, high, seed) draws for a float32 x, to the bit where its levels
    are the plan's.

    A path is its sample's seed and stage alone: not the batch, the device, the dtype, the solver or
    the grid, so a plan of more steps, of other levels, or made with start= follows the same one.
    Every n is unit normal and those of one run are independent, so a run is distributed as without
    a path. On nested grids the fine increments add up to the coarse one.

    What is and is not true: the noise of an SDE's step is an integral ∫ g dW, and n, as published,
    the increment of W alone, which agrees to the first order of the step. So with a path the
    solvers of an equation (all that draw noise but lcm, tcd and cm) converge path by path, with
    strong order 1 whatever their weak order is; runs of two step counts are near each other, not
    equal, and a single n is what it was: a unit normal.

    Drawn on the host, by about 2 log2(1/resolution) normal arrays of a sample's size for each noise
    and sample, 15 ms for one of [4, 64, 64]; ends are told apart to 1e-9 in s, to 1e-6 in rho. The
    noise that a run or an image starts with, and what is drawn for a known image, are as without a
    path. Served by Run, Sampler in every mode, and Engine.submit. ValueError, one sentence, for a
    plan that goes up again between its noises (restart); ImportError where torchsde is missing.
    """
    _torchsde()
    if span is None:
        return Brownian()
    found = reals(span)
    if found is None or found.shape != (2,) or not 0.0 <= found[0] < found[1] < float("inf"):
        raise ValueError(
            f"brownian: span = {span!r:.60}; two levels sigma/alpha, the lower first, are accepted"
        )
    return Brownian((float(found[0]), float(found[1])))
