"""A whole run through the definition in plain torch: what gradients of any order, torch.func,
torch.jit.trace, torch.export and make_fx go through.

The structure of the plan is Python, its numbers are tensors; a state is read only to be judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..kernels import normal, transforms
from ..kernels.reference import step as definition
from ..plan import Plan
from . import arguments, inpainting, outputs, pool, sources, unused
from .window import Brownian, parted


def run(
    plan: Plan,
    ask: Callable,
    words: dict,
    numbers: Tensor | None,
    state: torch.dtype | None,
    model: torch.dtype | None,
    copies: int,
    ask_again: bool,
) -> list[Tensor]:
    """The state [B,*] as each row that asks the model begins, and at the end. words: what a Run is
    begun with. ask(x, t, row): the model of that row, x repeating the batch `copies` times.
    numbers [R, WF]: in place of the plan's own. ask_again: for a gradient, instead of keeping what
    the model computes on the way.
    """
    names, masked = ("noise", "latent", "shape", "device"), words["mask"] is not None
    given, size, device = arguments.start(
        *(words[name] for name in names), image=plan.sigma[0] == 0, gradients=True
    )
    noise, latent = words["noise"] is not None, words["latent"] is not None
    first = arguments.entry(plan, latent, words["start"], noise, masked)
    state = state or arguments.state_dtype(given)
    model = model or (state if given is None else given.dtype)
    own, at, where = pool.table(plan, state, device), plan.layout, (state, device, True)
    numbers = own.f if numbers is None else _numbers(numbers, own.f)
    blend = inpainting.blend(plan, words["mask"], words["known"], size, *where)
    scale = arguments.scales(plan, words["guidance"], size[0], *where)
    x, drawn = _noise(plan, words, first, given, size, *where)
    unused.refuse_noise(plan, words, given is not None)
    told = lambda row: _told(numbers, at, row, x, model, copies)
    slots, states, asked = [None] * at.S, [], told(first - 1) if first else None
    for i in range(first, plan.rows - 1):
        shape, f = own.shapes[i], [None] * at.G
        if shape.call >= 0:
            states.append(x)
            f = checkpoint(ask, *asked, i, use_reentrant=False) if ask_again else ask(*asked, i)
            f = outputs.branches("Sampler", f, x, model, shape.branches_needed(at), i)
            f = [v if v is None else v.to(state) for v in f]
        noise = drawn(i)
        x, *kept, _, _ = definition.row(
            shape, at, numbers[i], x, slots, f, noise, scale, None, None, *blend
        )
        for slot, value in zip(shape.dst, kept, strict=True):
            if slot >= 0:
                slots[slot] = value
        asked = told(i)
    return [*states, x]


def _noise(plan, words, first, given, size, state, device, gradients) -> tuple[Tensor, Callable]:
    """The start [B,*] in the state dtype, and row -> its L draws, scaled."""
    masked, noise, batch = words["mask"] is not None, words["noise"], size[0]
    scale = arguments.noise_scales(words["noise_scale"], batch, state, device, gradients)
    window, source = parted(words["noise_source"], size, plan)
    path = window if isinstance(window, Brownian) else None
    window = None if path else window
    whole, samples = (size[1:], None) if window is None else (window.whole, window.samples)
    theirs = sources.draws(source, plan, size, state, device, masked, noise, gradients)
    still = sources.silent(words["noise_scale"])
    needed = given is None or sources.seeded(plan, first, noise, source, still, masked)
    stage = sources.stages(words["stage"], plan, first, batch, device)
    # view: seeds held by a trace must not serve another batch size
    seed = sources.seeds(words["seed"], batch, device, needed, samples).view(batch)

    def unit(k: int) -> Tensor:
        if path:
            if (name := transforms.active(seed)) is not None:
                raise RuntimeError(
                    "Sampler: noise_source is a Brownian path, which goes by seeds that are read, "
                    f"under {name}; noise_source= as tensors is accepted there"
                )
            return path.noise(seed, stage, k, torch.empty(size, dtype=state, device=device))
        elements, at = math.prod(whole), 0 if stage is None else stage
        n = normal(seed, torch.full_like(seed, k), elements, at)
        return (n.view(size) if window is None else window.cut(n)).to(state)

    def drawn(row: int) -> list[Tensor | None]:
        ids = arguments.drawn(plan, row, masked)
        own = [None] * len(ids) if theirs is None else theirs(row)
        pairs = zip(own, ids, strict=True)
        drawn = [None if k is None else unit(k) if n is None else n for n, k in pairs]
        if scale is None:
            return drawn
        each = scale.view(-1, *[1] * (len(size) - 1))
        return [None if n is None else n * each for n in drawn]

    return unit(0) if given is None else given.to(state), drawn


def _told(numbers: Tensor, at, row: int, x: Tensor, model: torch.dtype, copies: int) -> tuple:
    """What the model is asked with after `row`: its input [copies*B,*] and scalars."""
    asked = (numbers[row, at.at("c")] * x).to(model)
    t = numbers[row, at.at("t") :][: at.E].expand(copies * x.shape[0], -1)
    return torch.cat([asked] * copies) if copies > 1 else asked, t[:, 0] if at.E == 1 else t


def _numbers(given: object, own: Tensor) -> Tensor:
    if isinstance(given, Tensor) and given.shape == own.shape and given.dtype == own.dtype:
        return given
    got = outputs.words(given)
    got = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else got
    raise ValueError(f"Sampler: table is {got}; a tensor {own.dtype} {list(own.shape)} is needed")


def judge(where: str, states: Sequence[Tensor], plan: Plan, asked: torch.dtype | None) -> None:
    """FloatingPointError where the end is not finite and no transform hides it, naming the row."""
    if transforms.active(states[-1]) is not None or bool(states[-1].isfinite().all()):
        return
    rows = [i for i, shape in enumerate(plan.program.rows) if shape.call >= 0]
    rows = rows[len(rows) - len(states) + 1 :]
    bad = [~x.detach().isfinite().flatten(1).all(1) for x in states[1:]]
    first = next(i for i, b in zip(rows, bad, strict=True) if bool(b.any()))
    status = [first << 8 | 8 if b else 0 for b in bad[-1].tolist()]
    outputs.refuse_status(status, plan, asked or states[0].dtype, states[0].numel(), where)
