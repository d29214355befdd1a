"""Select: the samples that a batch goes on with, re-ordered, fewer, or some more than once (best of
n, particle filters), with all that is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import caller
from ..kernels import transforms
from . import arguments, sources
from .conditions import take, told
from .density import Density

ALIKE = (
    "{}: index names a sample more than once, and its copies keep its seed, so that they draw the "
    "same noise; pass seeds= for noise of their own"
)


@dataclass(frozen=True, eq=False)
class Select:
    """What a Sampler's callback may return: go on with samples index [n], as `Run.select` has it,
    each with its conditions; at the states x [n,*] where they are given, with these seeds.
    """

    index: Any
    x: Tensor | None = None
    seeds: Any = None


class Selectable(Density):
    """A cursor whose samples may be chosen among."""

    def select(self, index: Sequence[int] | np.ndarray | Tensor, *, seeds=None) -> None:
        """Go on with samples index [n], whole numbers from 0 to B-1 in any order, some of them, or
        some more than once: state, history, seed, stage, scales, mask, known image, status and the
        noise that was handed over move, into new memory. A callable noise_source is asked for the
        batch as it is then.

        seeds: new ones, as seed= takes them for n samples. Without them a copy keeps its seed and
        draws what the other draws, of which one UserWarning tells. Raises ValueError or TypeError,
        one sentence, and nothing has moved. An index on a device is waited for.
        """
        transforms.refuse("Run.select", index, seeds)
        own, source, draws = self._pool, self._source[0], self._draws
        index, masked = chosen("Run.select", index, own.batch), own.mask is not None
        if seeds is not None:
            seeds = self._new_seeds(seeds, len(index))
        left = set() if self._still else arguments.drawn_from(self.plan, self.row, masked)
        if seeds is not None and draws is None and 0 in left:
            # what the run began with stays with its sample, though its seed does not
            draws = sources.Draws(sources.ids(self.plan, masked), {0: self._philox(0)})
        self._settle()
        there = arguments.uploaded(index, own.x.device)
        moved = own.selected(there)
        if seeds is not None:
            moved.seed, self._seeded = seeds, True
        if isinstance(source, Sequence):
            source = [noise[there] for noise in source]
        self._source = source, tuple(moved.x.shape), *self._source[2:]
        self._draws = None if draws is None else draws.selected(there)
        self._window = self._window and self._window.selected(index.tolist())
        self._stand(moved)
        if (
            left
            and seeds is None
            and not callable(source)
            and len(set(index.tolist())) < len(index)
        ):
            caller.warn(ALIKE.format("Run.select"))

    def _new_seeds(self, seeds: object, n: int) -> Tensor:
        """int64 [n]."""
        if self._source[0] is not None:
            raise ValueError(
                "Run.select: seeds are given and the run draws from noise_source; without seeds= "
                "is accepted"
            )
        with arguments.named("Run.select"):
            return sources.seeds(seeds, n, self._pool.x.device, needed=True)


def chosen(where: str, index: object, count: int) -> Tensor:
    """Sample numbers [n] int64 on the CPU, of a list, an array or a tensor of whole numbers from 0
    to count - 1; TypeError or ValueError, one sentence, for anything else.
    """
    given = index.detach().cpu() if isinstance(index, Tensor) else index
    try:
        numbers = np.asarray(given)
    except (TypeError, ValueError):  # of no dtype, of no form
        numbers = np.asarray(None)
    listed = given if isinstance(given, (list, tuple)) else ()
    if numbers.dtype == np.bool_ or any(isinstance(v, (bool, np.bool_)) for v in listed):
        raise TypeError(
            f"{where}: index is a mask of {numbers.size} truth values; the numbers of the samples "
            "are accepted, numpy.flatnonzero(mask), or mask.nonzero().flatten() of a tensor"
        )
    span = f"0 to {count - 1} are" if count else "none is left, and [] is"
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise TypeError(f"{where}: index is {index!r:.60}; whole numbers [n], {span} accepted")
    bad = [int(k) for k in numbers if not 0 <= k < count]
    if bad:
        raise ValueError(f"{where}: index names sample {bad[0]} of {count}; {span} accepted")
    return torch.tensor(numbers.astype(np.int64), device="cpu")


def following(trees: dict[str, dict], asker: Callable) -> Callable[[Tensor], Callable]:
    """index -> what asks the model for those samples: trees, the condition of each branch, follow
    the samples that were chosen before. asker(trees, conditions) makes it first.
    """

    def ask(index: Tensor) -> Callable:
        nonlocal trees
        trees = {name: take(tree, index) for name, tree in trees.items()}
        return asker(trees, [told(tree) for tree in trees.values()])[0]

    return ask
