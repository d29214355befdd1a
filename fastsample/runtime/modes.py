"""The modes of a Sampler (`fastsample.runtime.sampler` says what each does): what each accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ..kernels.backend import BACKENDS
from ..plan import Plan
from . import outputs

MODES = ("eager", "compile-model", "compile-loop", "graph")
WHOLE = ("compile-loop", "graph")  # every row at once, so nobody is told of one


def check(mode: str, differentiable: bool, checkpoint: bool, backend: str | None) -> None:
    """Refuse words that no Sampler is made with."""
    if mode not in MODES:
        raise ValueError(f"Sampler: mode={mode!r}; accepted are {', '.join(MODES)}")
    if differentiable and mode in WHOLE:
        raise ValueError(
            f"Sampler: differentiable=True with mode={mode!r}; gradients are accepted in "
            "'eager' and 'compile-model'"
        )
    if checkpoint and not differentiable:
        raise ValueError("Sampler: checkpoint=True without differentiable=True has no gradient")
    if backend not in (None, *BACKENDS):
        raise ValueError(f"Sampler: backend={backend!r}; accepted are {', '.join(BACKENDS)}")
    if (differentiable and backend not in (None, "reference")) or (
        mode == "compile-loop" and backend is not None
    ):
        where = "differentiable=True" if differentiable else f"mode={mode!r}"
        raise ValueError(
            f"Sampler: backend={backend!r} with {where}, whose steps are no kernel of its choice; "
            "leave backend out"
        )


def check_graph(mode: str, differentiable: bool, capture: str, prepare: Callable | None) -> None:
    """Refuse words of a captured loop that are none, or stand where nothing heeds them."""
    if capture not in ("ahead", "now"):
        raise ValueError(f"Sampler: capture={capture!r}; accepted are ahead, now")
    if capture == "now" and mode != "graph":
        raise ValueError(f"Sampler: capture='now' with mode={mode!r}; mode='graph' is accepted")
    if prepare is not None and (not callable(prepare) or differentiable or mode == "compile-loop"):
        raise ValueError(
            f"Sampler: prepare is a {type(prepare).__name__} in mode {mode!r}; a callable(times) "
            "is accepted in 'eager', 'compile-model' and 'graph' without gradients"
        )


def check_call(mode: str, differentiable: bool, callback, progress: bool, table, out) -> None:
    """Refuse words of a call that its mode does not take."""
    if table is not None and not differentiable:
        raise ValueError(
            "Sampler: table= is given without differentiable=True; a plan's own numbers are "
            "used otherwise"
        )
    if out is not None and differentiable:
        raise ValueError("Sampler: out= is given with differentiable=True; leave one of them out")
    if callback is not None and not callable(callback):
        raise TypeError(
            f"Sampler: callback is a {type(callback).__name__}; a callable(step, x, x0) is accepted"
        )
    if (mode in WHOLE or differentiable) and (callback is not None or progress):
        raise ValueError(
            "Sampler: callback and progress need mode='eager' or 'compile-model' without "
            f"gradients; mode is {mode!r}"
        )


def check_out(out: Tensor, x: Tensor) -> None:
    """Refuse what the result x [B,*] cannot be written to."""
    kind = lambda v: (v.shape, v.dtype, v.device)
    if not isinstance(out, Tensor) or kind(out) != kind(x) or out.requires_grad:
        raise ValueError(
            f"Sampler: out is {outputs.words(out)} for a result of {list(x.shape)}; a tensor of "
            f"that shape, {x.dtype} on {x.device}, that requires no grad is accepted"
        )


def check_models(plan: Plan, given: object, models: Sequence[object]) -> None:
    """Refuse what cannot answer every row of the plan; models: the given one, or all of them."""
    asked = int(plan.call.max()) + 1
    wrong = [m for m in models if not callable(m)]
    if wrong or not models:
        found = f"a {type(given).__name__}" if given is not models and wrong == [given] else ""
        found = found or (f"a list with a {type(wrong[0]).__name__}" if wrong else "an empty list")
        raise TypeError(
            f"Sampler: model is {found}; a callable(x, t, **cond) -> prediction, or a list of "
            f"{asked}, is accepted"
        )
    if asked > len(models):
        raise TypeError(
            f"Sampler: {len(models)} model(s) for a plan that asks model {asked - 1}; a list of "
            f"{asked} callables is needed"
        )


def quiet(kept: bool):
    """Without gradients, where there may be some and they are not kept."""
    return nullcontext() if kept or not torch.is_grad_enabled() else torch.no_grad()
