"""What a pipeline of diffusers asks its network, as a Model and its conditions: a step of the
pipeline is run and watched, so that its own encoders, packing, image size and embeddings are in it.

    it = asked(pipe, [{"prompt": "a cat"}], [{"prompt": ""}])
    z = torch.randn(16, *it.shape)
    search = fs.optimize.search(it.model, z, [4, 6, 8], **it.words(len(z)), guidance=5.0)
    pipe.scheduler = fs.FsScheduler.from_plan(search.plans[8], like=pipe.scheduler)

The pipeline is called without guidance, a call for each condition. What its network was told is cut
into what belongs to a sample (a tensor [1,*]), and what does not (all else). Refused, each with a
sentence, is a pipeline whose network sees something else than the scaled sample, or whose scheduler
is told something else than the network's answer, its first half of the channels, or either with the
other sign.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from ...model import Model
from ...runtime.conditions import Shared, shared
from .config import words_of_model
from .folder import said
from .moving import closest
from .scheduler import FsScheduler

# what a network is told of the scheduler's timestep t, of N training timesteps
TIMES: dict[str, Callable] = {
    "t": lambda t, n: t,
    "t/N": lambda t, n: t / n,
    "1 - t/N": lambda t, n: 1 - t / n,
}
ROUNDING = 1e-3  # relative: a timestep or a sample went through bfloat16 at most
UNTOLD = ("return_dict",)


@dataclass(frozen=True)
class Asked:
    """The network of a pipeline as a Model, the shape of one sample, and the conditions of the
    calls: trees whose tensors are [calls, *], for uncond [1, *] or [calls, *].
    """

    model: Model
    shape: tuple[int, ...]
    cond: dict
    uncond: dict | None

    def words(self, count: int) -> dict[str, dict]:
        """cond and uncond of `count` samples, sample b with those of call b mod calls."""
        pick = lambda v: v[torch.arange(count) % len(v)] if isinstance(v, Tensor) else v
        words = {"cond": tree_map(pick, self.cond)}
        return words if self.uncond is None else words | {"uncond": tree_map(pick, self.uncond)}


class Network(torch.nn.Module):
    """fn(x, t, **cond) -> prediction: a pipeline's network, asked as the pipeline asks it.

    names: of its arguments for x and t; fixed: those that belong to no sample; rule: what it is
    told of t; sign, half: the prediction is sign times its answer, or the first half of that.
    """

    def __init__(self, net, names, fixed: dict, rule: Callable, sign: int, half: bool) -> None:
        super().__init__()
        self.net, self.names, self.fixed = net, names, fixed
        self.rule, self.sign, self.half = rule, sign, half

    def forward(self, x: Tensor, t: Tensor, **cond: object) -> Tensor:
        here = lambda v: v.to(x.device) if isinstance(v, Tensor) else v
        words = tree_map(here, {**self.fixed, **cond})
        answer = _answer(self.net(**dict(zip(self.names, (x, self.rule(t)), strict=True)), **words))
        answer = answer[:, : x.shape[1]] if self.half else answer
        return -answer if self.sign < 0 else answer


@torch.no_grad()
def asked(pipe: Any, calls: Sequence[Mapping], uncond: Sequence[Mapping] | None = None) -> Asked:
    """What the network of the pipeline is asked in these calls, each a dict of keywords of the
    pipeline's call; uncond: those of guidance's other branch, one for all or one for each.

    Each call runs the pipeline up to its first step. Its scheduler may be any whose noise schedule
    FsScheduler reads. ValueError, one sentence, for a pipeline that asks in another way.
    """
    peer = FsScheduler.from_config(pipe.scheduler, compat=None, source=closest(pipe.scheduler))
    own, pipe.scheduler = pipe.scheduler, peer
    try:
        seen = [_watched(pipe, call) for call in calls]
        others = [_watched(pipe, call) for call in uncond or ()]
    finally:
        pipe.scheduler = own
    first = seen[0]
    for each in (*seen, *others):
        _refuse_unlike(pipe, first, each)
    shift = first.mu
    if shift is not None and peer.config.time_shift_type == "exponential":
        shift = math.exp(shift)
    model = words_of_model(peer.config.source, peer._settings, False, shift)
    steps = peer.config.num_train_timesteps
    fn = Network(
        first.net, first.names, first.fixed, _rule(pipe, first, steps), *_part(pipe, first)
    )
    joined = lambda found: tree_map(_joined, *(each.own for each in found))
    trees = joined(seen), joined(others) if others else None
    return Asked(replace(model, fn=fn), tuple(first.x.shape[1:]), *trees)


# -- a call, watched -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Seen:
    """What one call asked at its first step: the network and its arguments' names, x and t as it
    was told, the arguments that belong to the sample and those that do not, its answer; and what
    the scheduler was told then, the sample's model input by it, and mu.
    """

    net: torch.nn.Module
    names: tuple[str, str]
    x: Tensor
    told: Any
    own: dict
    fixed: dict
    answer: Tensor
    output: Tensor
    t: float
    scaled: Tensor
    mu: float | None


class _Enough(Exception):
    """Ends a pipeline's call in its first step."""


def network(pipe: Any) -> torch.nn.Module:
    """The component of a pipeline that is told a time; ValueError where there is not one."""
    parts = [(name, v) for name, v in pipe.components.items() if isinstance(v, torch.nn.Module)]
    found = {name: part for name, part in parts if _times(part)}
    if len(found) != 1:
        raise ValueError(
            f"asked: {type(pipe).__name__} has {len(found)} networks that are told a time as "
            f"timestep ({', '.join(found) or 'none'}); a pipeline with one is accepted, or its "
            "network as a Model of its own"
        )
    return next(iter(found.values()))


def _times(net: torch.nn.Module) -> list[str]:
    return [n for n in inspect.signature(net.forward).parameters if n in ("timestep", "timesteps")]


def _watched(pipe: Any, call: Mapping) -> Seen:
    """The first step of a call of the pipeline."""
    net, asks, told = network(pipe), [], []

    def answered(_: object, given: tuple, words: dict, answer: object) -> None:
        asks.append((inspect.signature(net.forward).bind(*given, **words).arguments, answer))

    step = pipe.scheduler.step

    @wraps(step)
    def stepped(model_output: Tensor, timestep: Any, sample: Tensor, *others, **words) -> None:
        scaled = pipe.scheduler.scale_model_input(sample, timestep)
        told.append((model_output, float(timestep), scaled))
        raise _Enough

    hook = net.register_forward_hook(answered, with_kwargs=True)
    pipe.scheduler.step = stepped
    try:
        pipe(**call)
    except _Enough:
        pass
    except Exception as error:
        raise ValueError(
            f"asked: {type(pipe).__name__} cannot be called with {', '.join(call) or 'nothing'} "
            f"({said(error)}); a call that the pipeline runs is accepted"
        ) from error
    finally:
        hook.remove()
        del pipe.scheduler.step
    return _seen(pipe, net, asks, told)


def _seen(pipe: Any, net: torch.nn.Module, asks: list, told: list) -> Seen:
    where = f"asked: {type(pipe).__name__}"
    if len(asks) != 1 or len(told) != 1:
        raise ValueError(
            f"{where} asked its network {len(asks)} times before its scheduler stepped; a pipeline "
            "that asks once without guidance is accepted"
        )
    ((words, answer),) = asks
    ((output, t, scaled),) = told
    words = dict(words)
    words |= words.pop("kwargs", {})
    names = next(iter(inspect.signature(net.forward).parameters)), _times(net)[0]
    x, time = (words.pop(name, None) for name in names)
    if not isinstance(x, Tensor) or len(x) != 1 or x.shape != scaled.shape:
        what = list(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(
            f"{where} gives its network {what} for a sample of {list(scaled.shape)}; one sample, "
            "of the shape that its scheduler steps, is accepted"
        )
    if not torch.allclose(
        x.float(), scaled.float(), ROUNDING, ROUNDING * float(scaled.abs().max())
    ):
        raise ValueError(
            f"{where} gives its network something else than the scaled sample; a pipeline whose "
            "network sees that alone is accepted"
        )
    asks_for = inspect.signature(net.forward).parameters.values()
    must = {word.name for word in asks_for if word.default is word.empty}
    words = {k: v for k, v in words.items() if (v is not None or k in must) and k not in UNTOLD}
    goes = lambda v: isinstance(v, Tensor) and v.dim() > 0 and len(v) == 1
    cut = lambda v: v if goes(v) else shared(v)
    own = {k: tree_map(cut, v) for k, v in words.items() if any(map(goes, tree_leaves(v)))}
    fixed = {k: v for k, v in words.items() if k not in own}
    mu = pipe.scheduler._loops.get("asked").asked[3]
    parts = (x, time, own, fixed, _answer(answer), output, t, scaled, mu)
    return Seen(net, names, *parts)


def _answer(output: Any) -> Tensor:
    """The tensor of a network's output."""
    return output if isinstance(output, Tensor) else output[0]


def _joined(*values: Any) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else values[0]


def _refuse_unlike(pipe: Any, first: Seen, each: Seen) -> None:
    """ValueError where two calls differ in what belongs to no sample, or in a shape."""
    trees = (first.own, first.fixed), (each.own, each.fixed)
    (a, form), (b, other) = (tree_flatten(tree) for tree in trees)
    plain = lambda v: v.value if isinstance(v, Shared) else v
    alike = form == other and first.x.shape == each.x.shape
    for mine, theirs in zip(map(plain, a), map(plain, b), strict=False) if alike else ():
        if isinstance(mine, Tensor) and len(mine.shape) and len(mine) == 1:
            alike &= isinstance(theirs, Tensor) and mine.shape == theirs.shape
        elif isinstance(mine, Tensor):
            alike &= isinstance(theirs, Tensor) and torch.equal(mine, theirs)
        else:
            alike &= mine == theirs
    if not alike:
        raise ValueError(
            f"asked: two calls of {type(pipe).__name__} differ in the shape of what they tell its "
            "network, or in what belongs to no sample; calls of one size, with prompts padded to "
            "one length, are accepted"
        )


def _rule(pipe: Any, seen: Seen, steps: int) -> Callable[[Tensor], Tensor]:
    """What the network is told of the scheduler's timestep."""
    told, fits = torch.as_tensor(seen.told).double(), []
    for rule in TIMES.values():
        off = abs(float(told) - rule(seen.t, steps)) if told.numel() == 1 else math.inf
        fits += [rule] if off <= ROUNDING * max(abs(float(told)), 1 / steps) else []
    if len(fits) == 1:  # half-way two of them are one
        return lambda t: fits[0](t, steps)
    raise ValueError(
        f"asked: {type(pipe).__name__} tells its network {told.flatten()[:4].tolist()} at timestep "
        f"{seen.t:g}; one alone of {', '.join(TIMES)}, N = {steps}, is accepted"
    )


def _part(pipe: Any, seen: Seen) -> tuple[int, bool]:
    """(sign, half) by which the network's answer is what the scheduler was told."""
    for half in (False, True):
        answer = seen.answer[:, : seen.x.shape[1]] if half else seen.answer
        for sign in (1, -1):
            if answer.shape == seen.output.shape and torch.equal(sign * answer, seen.output):
                return sign, half
    raise ValueError(
        f"asked: {type(pipe).__name__} makes something else of its network's answer before its "
        "scheduler's step; a pipeline that hands it on is accepted"
    )
