"""A search's plans beside the best schedules made by hand, of any deterministic solver, on noises
the search never saw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..model import Model
from ._given import cut
from ._search import Compared, Search


def held_out_noise(where: str, held_out: Any, z: Tensor, device: torch.device) -> Tensor | None:
    """The held-out noise in z's dtype on the search's device, or a sentence; z lies on the CPU."""
    if held_out is None:
        return None
    found = f"a {type(held_out).__name__}"
    if isinstance(held_out, Tensor):
        found = f"{str(held_out.dtype)[6:]} {list(held_out.shape)}"
        fits = held_out.shape[1:] == z.shape[1:] and len(held_out) > 0
    if not isinstance(held_out, Tensor) or not fits or not held_out.is_floating_point():
        raise ValueError(
            f"{where}: held_out is {found} beside noise {list(z.shape)}; floating unit noise "
            f"{['B2', *z.shape[1:]]} is needed"
        )
    here = held_out.detach().cpu()
    if not here.isfinite().all():
        why = f"{where}: held_out holds a number that is not finite; unit normal noise is needed"
        raise ValueError(why)
    seen = {row.double().numpy().tobytes() for row in z}
    same = [b for b, row in enumerate(here.to(z)) if row.double().numpy().tobytes() in seen]
    if same:
        raise ValueError(
            f"{where}: noise {same[0]} of held_out is one of those searched with; noise the search "
            "never saw is needed"
        )
    return held_out.to(device, z.dtype)


def compare(
    model: Model, search: Search, held_out: Tensor, words: Mapping[str, Any], asked: Any = None
) -> tuple[dict[int, Compared], int]:
    """({M: Compared}, evaluations of all held-out noises together); the words of held-out noise b
    are those of the search's sample b mod `samples`.

    asked: called after every budget.
    """
    at = torch.arange(len(held_out), device="cpu") % search.samples  # lists are cut on the host
    given = {**cut(words, at), "ranks": words["ranks"]}
    if "weight" in given:
        given["weight"] = given["weight"][at.numpy()]
    plain = {k: v for k, v in given.items() if k != "weight"}
    target = metrics.run(search.teacher, model, held_out, **plain).cpu()  # once, not for each plan
    found, spent = {}, search.teacher.nfe * len(held_out)
    for m, plan in search.plans.items():
        best = metrics.best_hand_made(model, held_out, m, target, solver=None, **given)
        note = best.note["found"]
        ours, each = -math.inf, (-math.inf,) * 4
        with suppress(FloatingPointError):  # a run that does not stay finite
            score = metrics.score(plan, model, held_out, target, **given)
            ours, each = score.psnr, (score.mean, *score.quartiles)
        by_hand = best, note["solver"], note["grid"], note["psnr"]
        found[m] = Compared(*by_hand, ours, len(held_out), each)
        spent += note["evaluations"] + m * len(held_out)
        if asked is not None:
            asked()
    return found, spent
