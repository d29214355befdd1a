"""What a command works on: the embedded model, or one of the user's own."""

from __future__ import annotations

import argparse
import copy
import importlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from . import options as read
from . import pipelines

BATCH, BATCH_OF_PIPELINE = 256, 8
UNSEEN = 1_000_000  # seeds of noises no search has seen begin here


def model_options(add: Callable, samples: int | None) -> None:
    about = "a factory of a fastsample.Model (default: the embedded model)"
    add("--model", metavar="MODULE:FACTORY", help=about)
    add("--shape", type=read.shape, metavar="C,H,W", help="shape of one sample")
    if samples is not None:
        read.number(add, "--samples", samples, "noises")
    about = "seed of the first; sample b has seed + b (default: 0, so a command repeats itself)"
    add("--seed", type=read.seed, default=0, help=about)
    about = f"rows of one model call (default: {BATCH}, of a pipeline {BATCH_OF_PIPELINE})"
    add("--batch-size", type=read.count, help=about)
    about = "embedded model: one class 0..9 (default: each in turn; -1: none)"
    add("--label", type=int, help=about)
    about = "embedded model and pipelines: classifier-free guidance scale, or the scale that a "
    about += "guidance-distilled network is told"
    add("--guidance", type=read.finite, metavar="SCALE", help=about)
    add("--device", help="where the model is asked (default: cpu)")
    add("--dtype", metavar="DTYPE", help="what the model works in, as bfloat16 (default: float32)")
    pipelines.options(add)


@dataclass(frozen=True)
class Subject:
    """A model to work on: the Model, the shape of one sample, the words for a batch, words(count)
    -> {cond, uncond, guidance}, the device of its tensors and the dtype the model is asked in.
    """

    model: Any
    shape: tuple[int, ...]
    words: Callable[[int], dict[str, Any]]
    device: Any = None
    dtype: Any = None

    def noise(self, count: int, seed: int, stage: int = 0) -> Any:
        """Unit noise [count, *shape] of seeds seed, seed + 1, ..., at this stage."""
        import torch

        from ..kernels import normal

        seeds = torch.arange(count, dtype=torch.int64) + seed
        flat = normal(seeds, torch.zeros_like(seeds), math.prod(self.shape), stage)
        return flat.reshape(count, *self.shape).to(self.device)


def subject(args: argparse.Namespace) -> Subject:
    """The model a command was asked to work on, on its device and in its dtype."""
    device, dtype = _device(args.device), _dtype(args.dtype)
    return _placed(_found(args), device, dtype)


def _found(args: argparse.Namespace) -> Subject:
    if args.batch_size is None:
        args.batch_size = BATCH if args.pipeline is None else BATCH_OF_PIPELINE
    if args.pipeline is not None:
        return _of_pipeline(args)
    for word in pipelines.WORDS:
        if getattr(args, word) is not None:
            raise ValueError(
                f"--{word.replace('_', '-')} belongs to --pipeline, which is not given"
            )
    spec = args.model
    if spec is None:
        if args.shape:
            raise ValueError("--shape belongs to --model; the embedded model's samples are 1,28,28")
        return embedded(args.label, args.guidance)
    if args.label is not None or args.guidance is not None:
        raise ValueError(
            "--label and --guidance belong to the embedded model; close over your own model's "
            "words in its factory"
        )
    from ..model import Model

    module, _, name = spec.partition(":")
    if not module or not name:
        raise ValueError(f"--model {spec}: no factory is named; package.module:factory is needed")
    sys.path.insert(0, os.getcwd())  # as python -m does: a module beside the user is found
    found = getattr(_theirs(spec, "import", importlib.import_module, module), name, None)
    if not callable(found):
        raise ValueError(
            f"--model {spec}: {module} has no callable {name}; a factory that returns a "
            "fastsample.Model is needed"
        )
    model = _theirs(spec, "call", found)
    if not isinstance(model, Model):
        raise TypeError(
            f"--model {spec}: the factory returned a {type(model).__name__}; a fastsample.Model is "
            "needed"
        )
    shape = args.shape or getattr(model.fn, "shape", None)
    if shape is None:
        raise ValueError(
            f"--model {spec}: the shape of a sample is not known; pass --shape C,H,W or give the "
            "model's callable an attribute shape"
        )
    return Subject(model, tuple(int(n) for n in shape), lambda count: {})


def _theirs(spec: str, what: str, function: Callable, *given: Any) -> Any:
    """What the user's own code returns; whatever it raises is told in one sentence."""
    try:
        return function(*given)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ValueError(
            f"--model {spec}: its {what} failed ({why}); a module that is found here, with a "
            "factory of no arguments, is needed (--traceback shows where)"
        ) from error


def _device(name: str | None) -> Any:
    """The device; ValueError for one that holds no numbers here."""
    import torch

    from ..runtime import arguments

    try:
        device = torch.device(name or "cpu")
        torch.empty(0, device=device)
        why = "it holds no numbers" if arguments.numberless(device) else None
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
    if why:
        raise ValueError(
            f"--device {name}: {why}; cpu, or a device that torch has here, is accepted"
        )
    return device


def _dtype(name: str | None) -> Any:
    import torch

    from ..runtime import arguments

    dtype = None if name is None else getattr(torch, name, None)
    if name is not None and dtype not in arguments.MODELS:
        named = ", ".join(str(kind).removeprefix("torch.") for kind in arguments.MODELS)
        raise ValueError(f"--dtype {name}: one of {named} is accepted")
    return dtype


def _placed(it: Subject, device: Any, dtype: Any) -> Subject:
    """The subject on a device, its model there where it is a module, under autocast to a dtype of
    16 bits, or a module's own weights in float64.
    """
    import torch
    from torch.utils._pytree import tree_map

    model, fn = it.model, it.model.fn
    if isinstance(fn, torch.nn.Module):
        name, fn = model.identity, fn.to(device)
        if dtype is torch.float64:
            model = replace(model, fn=copy.deepcopy(fn).double(), model_id=name)
    if dtype in (torch.bfloat16, torch.float16):
        cast = torch.autocast(device.type, dtype)(fn.forward if hasattr(fn, "forward") else fn)
        model = replace(model, fn=cast, model_id=model.identity)
    here = lambda v: v.to(device) if hasattr(v, "to") else v
    words = lambda count: tree_map(here, it.words(count))
    return Subject(model, it.shape, words, device, dtype)


def _of_pipeline(args: argparse.Namespace) -> Subject:
    for word in ("model", "shape", "label"):
        if getattr(args, word) is not None:
            raise ValueError(
                f"--{word} beside --pipeline, which has its own; one of them is accepted"
            )
    it, guidance = pipelines.asked(args)

    def words(count: int) -> dict[str, Any]:
        found = it.words(count)
        return found if guidance is None else {**found, "guidance": guidance}

    return Subject(it.model, it.shape, words)


def embedded(label: int | None = None, guidance: float | None = None) -> Subject:
    """The embedded model, its classes in turn or one class, with or without guidance."""
    import torch

    from .. import models

    if label is not None and not -1 <= label <= 9:
        raise ValueError(
            f"--label {label}: there is no such class; 0 to 9, or -1 for none, is accepted"
        )

    def words(count: int) -> dict[str, Any]:
        none = torch.full((count,), 10)  # the eleventh class, "no class", which -1 stands for
        labels = torch.arange(count) % 10 if label is None else torch.full((count,), label % 11)
        plain = {"cond": {"label": labels}}
        if guidance is None:
            return plain
        return {**plain, "uncond": {"label": none}, "guidance": guidance}

    return Subject(models.fashion(), (1, 28, 28), words)
