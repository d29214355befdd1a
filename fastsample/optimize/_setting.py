"""What every search is given, checked before a model is asked, and what it hands back.

A search is a function of the teacher's states; all around it is here: noise, words, teacher,
progress, the notes of the plans and the comparison with schedules made by hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_leaves_with_path, tree_map_only

from .. import metrics
from ..kernels import normal
from ..kernels.narrow import has_float64, hosted
from ..model import Model
from ..plan import Plan
from ..runtime import arguments
from ..runtime.capturable import parts
from ..runtime.conditions import branches_of
from ..runtime.drive import bar
from ..runtime.ranks import Ranks
from ..runtime.sources import digest, drawn_seed
from ..runtime.sources import seeds as seeds_of
from ..trajectories import Denoiser
from . import _compare, _teacher
from ._given import Given, call, whole
from ._search import Search


class Found(NamedTuple):
    """One budget's answer: its nodes from noise to data, counted from the data end, its mean error
    at the teacher's end points, its plan of one branch, and what its note says of it alone.
    """

    nodes: np.ndarray
    error: float
    plan: Plan
    note: dict[str, Any]


@dataclass
class Setting:
    """What a search is given, checked.

    where: the search's name, which begins every sentence; z [B,*] and `held_out` on the search's
    device; words: cond, uncond, guidance, batch_size, model_dtype and ranks, as a `Denoiser`
    takes them;
    dtype, device: of states; weight [B,D] float64 on the CPU, or None.
    """

    where: str
    model: Model
    z: Tensor
    teacher: _teacher.Teacher
    budgets: Sequence[int]
    words: dict[str, Any]
    dtype: torch.dtype
    device: torch.device
    weight: np.ndarray | None
    held_out: Tensor | None
    note: dict[str, Any]
    given: Given
    begin: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(
        cls,
        where: str,
        model: Model,
        z: Tensor | Sequence[int],
        budget: int,
        given: Mapping[str, Any],
        own: Mapping[str, Any],
    ) -> Setting:
        """own: the search's own arguments, by name. Raises ValueError or TypeError, one sentence,
        for bad input.
        """
        begin = time.perf_counter()
        if not isinstance(model, Model):
            why = f"{where}: the model is a {type(model).__name__}; an fs.Model is needed"
            raise TypeError(why)
        if not isinstance(z, (Tensor, Sequence)):
            found = f"z is a {type(z).__name__}"
            raise TypeError(f"{where}: {found}; unit noise [B,*], or its shape, is needed")
        whole(where, budget=budget)
        it = Given.of(where, given)
        again = call(where, z, own, it)
        teacher = _teacher.choose(where, model, it, budget)
        ranks = Ranks.of(it.group)
        z, here, seed = _noise(where, z, it.seed, ranks)
        words = _told(where, model, z, it.cond, it.uncond)
        words |= {"guidance": it.guidance, "batch_size": it.batch_size}
        words |= {"model_dtype": it.model_dtype, "ranks": ranks}
        weight = metrics.element_weights(where, it.weight, z.shape)
        held_out = _compare.held_out_noise(where, it.held_out, here, z.device)
        model, z, words, held_out = _on_host(model, z, words, held_out)
        note = {
            "seed": seed,
            "noise": digest(here).hex()[:16],
            "shape": list(z.shape[1:]),
            "guidance": it.guidance,
            "command": again,
            "weight": None if weight is None else digest(torch.from_numpy(weight)).hex()[:16],
        }
        unseen = None if held_out is None else digest(held_out.cpu()).hex()[:16]
        ranks.alike(where, note | {"held_out": unseen})
        budgets = range(1, budget + 1) if it.all_budgets else [budget]
        dtype = it.state_dtype or arguments.state_dtype(z)
        device = z.device if it.state_device is None else torch.device(it.state_device)
        kept = (dtype, device, weight, held_out, note, it, begin)
        return cls(where, model, z, teacher, budgets, words, *kept)

    @property
    def N(self) -> int:
        """Steps of the grid that is searched."""
        return len(self.teacher.grid) - 1

    @property
    def shown(self) -> bool | Callable:
        """The bar that this process shows; False: none."""
        return self.words["ranks"].first and self.given.progress

    def root(self, power: float) -> Tensor | None:
        """The weights to 1/power [B,D], on the states' device in the dtype that is computed in: the
        p-th power of a product with them is weighed.
        """
        if self.weight is None:
            return None
        wide = torch.promote_types(self.dtype, torch.float32)
        return torch.from_numpy(self.weight ** (1 / power)).to(self.device, wide)

    def search(
        self,
        note: dict[str, Any],
        evaluations: int,
        states: int,
        solve: Callable[[Denoiser, Tensor, Tensor], dict[int, Found]],
    ) -> Search:
        """What `solve` finds, as a Search. It is given the denoiser of the grid's nodes, the
        teacher's states X [B,N+1,D] from the data end and its first x0 [B,D]; evaluations: the most
        per sample it asks for; states: the most [B,D] that are kept.
        """
        taken = self._room(states)
        found, nfe = self._solved(evaluations, solve)
        teacher, B = self.teacher, len(self.z)
        indices = {m: self.N - answer.nodes for m, answer in found.items()}
        error = {m: answer.error for m, answer in found.items()}
        spent = (nfe, B, time.perf_counter() - self.begin, teacher.agreement, teacher.nfe)
        search = Search({}, error, indices, teacher.grid, teacher.plan, *spent, bytes=taken)
        for m, answer in found.items():
            said = {
                "method": self.where,
                **note,
                **self.note,
                "teacher": teacher.note(),
                "compared": "not compared",
                **answer.note,
                "budget": m,
                "N": self.N,
                "indices": indices[m].tolist(),
                "start_label": float(search.grid[indices[m][0]]),
                "samples": B,
                "error": answer.error,
                "evaluations": nfe,
            }
            search.plans[m] = answer.plan.with_note(found=said)
        return search if self.held_out is None else self._compared(search)

    def _room(self, states: int) -> int:
        """Bytes of so many states of all samples; refuses more than `max_bytes`."""
        one, most = states * self.z[0].numel() * self.dtype.itemsize, self.given.max_bytes
        taken = one * len(self.z)
        if most is not None and taken > most:
            fits = f"at most {most // one} samples" if most >= one else "a smaller budget or beam"
            raise ValueError(
                f"{self.where}: states of {len(self.z)} samples take {taken:,} bytes and max_bytes "
                f"is {most:,}; {fits}, or half of it with state_dtype=torch.bfloat16, is accepted"
            )
        return taken

    def _solved(self, evaluations: int, solve: Callable) -> tuple[dict[int, Found], float]:
        """The answers, and the evaluations per sample; the teacher is settled on the way."""
        z, grid, name, dtype = self.z, self.teacher.grid, self.where, self.dtype
        rows = lambda: len(z) * (self.teacher.plan.nfe + evaluations)
        shows = bar(name, self.shown, rows(), unit=" evaluations", desc=name)
        with torch.no_grad(), shows as shown:
            asked = shown and shown.update
            ask = Denoiser(self.model, grid[::-1].copy(), z, dtype=dtype, asked=asked, **self.words)
            self.teacher = _teacher.settle(name, self.teacher, ask, z, self.words, self.weight)
            _known(shown, ask.rows + rows(), self.teacher.agreement)
            size = len(z), len(grid) + 1, z[0].numel()
            kept = torch.empty(size, dtype=dtype, device=self.device)
            X, first = _teacher.walk(name, self.teacher.plan, ask, z, grid, self.words, kept)
            return solve(ask, X, first), ask.rows / len(z)

    def _compared(self, search: Search) -> Search:
        """The search with its plans beside the best made by hand, in itself and in their notes."""
        words = self.words | {"state_dtype": torch.promote_types(self.dtype, torch.float32)}
        if self.weight is not None:
            words["weight"] = self.weight.reshape(self.z.shape)
        shows = self.shown, len(search.plans)
        with bar(self.where, *shows, unit=" budgets", desc="by hand") as shown:
            asked = shown and shown.update
            found, spent = _compare.compare(self.model, search, self.held_out, words, asked)
        noted = {
            m: plan.with_note(
                found={
                    **plan.note["found"],
                    "compared": found[m].note(),
                    "held_out": found[m].held_out(),
                }
            )
            for m, plan in search.plans.items()
        }
        return replace(search, plans=noted, compared=found, compared_nfe=spent / search.samples)


def _noise(
    where: str, z: Tensor | Sequence[int], seed: int | None, ranks: Ranks
) -> tuple[Tensor, Tensor, int | None]:
    """The unit noise, the same on the CPU, and the seed it was drawn from."""
    if seed is not None and arguments.integer(seed) is None:
        why = f"{where}: seed is {seed!r:.80}; an int, or None for a fresh one, is accepted"
        raise TypeError(why)
    if not isinstance(z, Tensor):
        shape = tuple(int(n) for n in z)
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(
                f"{where}: z={list(shape)}; unit noise [B,*], or such a shape of 2 or more "
                "dimensions, is needed"
            )
        seed = ranks.told(drawn_seed) if seed is None else arguments.integer(seed)
        seeds = seeds_of(seed, shape[0], torch.device("cpu"), needed=True)
        z = normal(seeds, torch.zeros_like(seeds), int(np.prod(shape[1:]))).reshape(shape)
        return z, z, seed
    if z.ndim < 2 or z.numel() == 0 or not z.is_floating_point():
        raise ValueError(
            f"{where}: z is {str(z.dtype)[6:]} {list(z.shape)}; floating unit noise [B,*] with at "
            "least one element is needed"
        )
    here = z.detach().cpu()
    if not here.isfinite().all():
        raise ValueError(
            f"{where}: z holds a number that is not finite; unit normal noise is needed"
        )
    return z, here, seed


def _on_host(model: Model, z: Tensor, *given: Any) -> tuple:
    """Model, noise and all that goes with it on the host where the noise's device has no float64:
    the model alone is asked there.
    """
    if has_float64(z.device):
        return model, z, *given
    there = z.device

    def ask(*args, **words):
        args, words = tree_map_only(Tensor, lambda v: v.to(there), (args, words))
        return hosted(model.fn(*args, **words))

    return replace(model, fn=ask, model_id=model.identity), *hosted((z, *given))


def _told(where: str, model: Model, z: Tensor, cond: Any, uncond: Any) -> dict[str, dict]:
    """The condition of each branch. Refuses a model and conditions that lie elsewhere than the
    noise; a module that is offloaded, which its hook tells, comes when it is asked.
    """
    words, device = branches_of(where, cond, uncond, None, len(z), z.device), z.device
    modules = [part for part in parts(model.fn) if isinstance(part, torch.nn.Module)]
    homes = {v.device for module in modules for v in module.parameters(recurse=False)}
    offloaded = any(hasattr(module, "_hf_hook") for module in modules)
    if homes and device not in homes and not offloaded:
        there = ", ".join(sorted(map(str, homes)))
        raise ValueError(
            f"{where}: the model's parameters are on {there} and z is on {device}; one device is "
            "needed: move the model, or pass z as a tensor there"
        )
    for path, leaf in tree_leaves_with_path(words):
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.device != device:
            name = keystr(path[1:]).replace("'", '"')
            raise ValueError(
                f"{where}: {path[0].key}{name} is on {leaf.device} and z is on {device}; one "
                "device, or fs.shared(value), is accepted"
            )
    return words


def _known(shown: Any, total: int, agreement: float | None) -> None:
    """The bar once the teacher is settled: its exact total, and the teacher's agreement."""
    if shown is not None:
        shown.total = total
        agrees = "not measured" if agreement is None else f"agrees to {agreement:.1f} dB"
        shown.set_postfix_str(f"teacher {agrees}")
