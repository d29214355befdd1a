"""A window of a larger batch: a rank's slice, a tile, a padded length.

Noise counts the numbers of a sample in their order (`fastsample.runtime.sources`), so that a part
by itself draws what the beginning of the whole would. Whoever holds a part says which:

    fs.Run(plan, shape=(2, 4, 32, 64), seed=7,
           noise_source=fs.window((2, 4, 64, 64), np.s_[:, :, 32:]))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.backend import filling
from ..plan import Plan
from .arguments import integer
from .brownian import Brownian


@dataclass(frozen=True)
class Window:
    """What `window` returns. whole: sizes; part: a slice of each axis; samples: where in the whole
    those of the batch stand, None for a window of one sample.
    """

    whole: tuple[int, ...]
    part: tuple[slice, ...]
    samples: tuple[int, ...] | None = None

    def over(self, size: Sequence[int], plan: Plan) -> Window:
        """The same for a batch of this size [B,*], over sizes and slices of a sample."""
        whole, part = self.whole, self.part
        if len(whole) == len(size) - 1:
            whole, part = (size[0], *whole), (slice(None), *part)
        places = [range(n)[s] for n, s in zip(whole, part, strict=True)]
        if tuple(map(len, places)) != tuple(size):
            raise ValueError(
                f"Run: noise_source is a window of {list(map(len, places))} of {list(whole)} for a "
                f"batch of {list(size)}; one of that size is accepted"
            )
        return Window(whole[1:], part[1:], tuple(places[0]))

    def on(self, plan: Plan) -> Window:
        return self

    def selected(self, index: Sequence[int]) -> Window:
        return replace(self, samples=tuple(self.samples[b] for b in index))

    def cut(self, noise: Tensor) -> Tensor:
        """The window of the whole's noise [B, numbers of a sample]."""
        return noise.view(-1, *self.whole)[(slice(None), *self.part)]

    def noise(self, seed: Tensor, stage: Tensor | None, id_: int, like: Tensor) -> Tensor:
        """The noise id_ of samples with these seeds and stages [B], as like [B,*]; drawn on the
        host, by the whole sample, which costs it 1.5 ns a number.
        """
        fill = filling(like.dtype).module.fill
        seed, stage = seed.cpu(), None if stage is None else stage.cpu()
        out = torch.empty(like.shape, dtype=like.dtype, device="cpu")
        whole = torch.empty(1, math.prod(self.whole), dtype=like.dtype, device="cpu")
        for b in range(len(seed)):
            one = slice(b, b + 1)
            fill(whole, seed[one], id_, None if stage is None else stage[one])
            out[one] = self.cut(whole)
        return out.to(like.device)


def window(whole_shape: Sequence[int], slices: object) -> Window:
    """noise_source= of a run that holds a part of a larger batch: it draws what a run of the whole
    draws there, to the bit.

    whole_shape   (B, *) of the whole, or (*) of one of its samples where the batch is whole
    slices        which part: a slice for each axis, as numpy.s_[:, :, 32:] writes them; those that
                  are left out, or stand under ..., are whole

    seed= is the whole's, and is needed: with an int s sample b of the whole takes s + b, whoever
    holds it. The noise is drawn on the host. Raises ValueError or TypeError, one sentence.
    """
    listed = isinstance(whole_shape, Sequence) and not isinstance(whole_shape, str)
    sizes = tuple(map(integer, whole_shape)) if listed else (None,)
    if not all(n is not None and n >= 0 for n in sizes):
        raise ValueError(
            f"window: whole_shape is {whole_shape!r:.60}; sizes, whole numbers of 0 or more, are "
            "accepted"
        )
    part = list(slices) if isinstance(slices, (tuple, list)) else [slices]
    dots = [k for k, s in enumerate(part) if s is ...]
    left = len(sizes) - len(part) + len(dots)
    if len(dots) > 1 or left < 0 or not all(s is ... or isinstance(s, slice) for s in part):
        raise TypeError(
            f"window: slices is {slices!r:.80} for a whole of {list(sizes)}; a slice for each of "
            f"its {len(sizes)} axes is accepted"
        )
    at = dots[0] if dots else len(part)
    part[at : at + len(dots)] = [slice(None)] * left
    for n, s in zip(sizes, part, strict=True):
        ends = [v is None or integer(v) is not None for v in (s.start, s.stop, s.step)]
        if not all(ends) or (s.step is not None and s.step < 1) or not _inside(s, n):
            raise ValueError(
                f"window: slices holds {s} for an axis of {n}; whole numbers on it, in steps of 1 "
                "or more, are accepted"
            )
    return Window(sizes, tuple(part))


def _inside(s: slice, n: int) -> bool:
    """Is what the slice names on an axis of n? Python would cut it silently."""
    return all(v is None or -n <= v <= n for v in (s.start, s.stop))


def parted(
    source: object, size: Sequence[int], plan: Plan
) -> tuple[Window | Brownian | None, object]:
    """A noise_source that goes by seeds, a window or a Brownian path, over batches of this size in
    runs of this plan; and what else it is.
    """
    seeded = isinstance(source, (Window, Brownian))
    return (source.over(size, plan), None) if seeded else (None, source)
