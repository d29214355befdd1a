"""A look at a model before a long search: does it answer, the same each time, and to what it is
told?
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import caller
from ..model import Model
from ..runtime.conditions import take
from ..trajectories import Denoiser
from ._given import cut

SAME = 1e-3  # of its size that an answer may move between identical calls (sums of other orders)
ALIKE = 0.02  # and from one machine to another, in half precision
KEPT = 4  # answers


def probe(
    where: str, model: Model, z: Tensor, grid: np.ndarray, words: Mapping[str, Any]
) -> tuple[float, int, np.ndarray]:
    """(seconds of an evaluation of one sample, evaluations spent, the first answers), asked of as
    many samples as a call takes, at the middle of the grid: calls of a few would not tell what a
    device can do.

    Raises ValueError for a model that answers otherwise when asked again, warns (UserWarning) of
    one that does not listen to its conditions.
    """
    first = slice(words["batch_size"])
    few, at, own = z[first], len(grid) // 2, cut(words, first)
    told = [own.pop("cond", None), own.pop("uncond", None)]
    guidance, spent = own.pop("guidance", None), 0

    def answer(cond: Mapping | None) -> Tensor:
        nonlocal spent
        ask = Denoiser(model, grid[at : at + 1].copy(), few, cond=cond, **own)
        with torch.no_grad():
            noise = float(ask.sigma[0]) * few.flatten(1).to(ask.wide)
            out = ask(noise[:, None], np.zeros(1, int))
        spent += ask.rows
        (seen,) = ask.look(out)
        return seen

    said = answer(told[0])
    begin = time.perf_counter()
    again = answer(told[0])
    seconds = (time.perf_counter() - begin) / len(few)
    size, moved = float(np.abs(said).max()), float(np.abs(again - said).max())
    if moved > SAME * size:
        raise ValueError(
            f"{where}: the model answers otherwise when it is asked the same again (by {moved:.3g} "
            f"of {size:.3g}); one without dropout or noise of its own (model.eval()) is needed"
        )
    if told[1] is not None:
        seconds *= 2
        if np.array_equal(answer(told[1]), said):
            _unheard(where, f"cond and uncond have the same answers, so guidance={guidance} does")
    elif told[0] and len(few) > 1:
        turned = take(told[0], torch.arange(1, len(few) + 1) % len(few))
        if not _alike(turned, told[0]) and np.array_equal(answer(turned), said):
            _unheard(where, "other conditions have the same answers, so these do")
    return seconds, spent, said[:KEPT, 0]


def other(where: str, kept: np.ndarray, said: np.ndarray) -> None:
    """Refuse to go on with a model of other answers than those of a search's beginning."""
    size, moved = np.linalg.norm(kept), np.linalg.norm(said - kept)
    if not moved <= ALIKE * size:
        raise ValueError(
            f"{where}: the model answers otherwise than the one that the checkpoint is of (by "
            f"{moved:.3g} of {size:.3g}); the same model, or another folder, is accepted"
        )


def _alike(one: Any, other: Any) -> bool:
    """Are these conditions the same for every sample?"""
    pairs = zip(*(torch.utils._pytree.tree_leaves(tree) for tree in (one, other)), strict=True)
    same = lambda a, b: torch.equal(a, b) if isinstance(a, Tensor) else a == b
    return all(same(a, b) for a, b in pairs)


def _unheard(where: str, what: str) -> None:
    caller.warn(
        f"{where}: {what} nothing; a model that takes its conditions under these names is needed"
    )
