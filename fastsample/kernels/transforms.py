"""Transforms of torch that look at operations and not at memory: what runs by address is invisible
to them, and values cannot be read.

Run, and a Sampler without differentiable=True, refuse to run under one. The definition in plain
torch runs under all of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx import _symbolic_trace as fx
from torch.utils._pytree import tree_leaves

tracing, innermost, modes = (
    torch._C._is_tracing,
    torch._C._functorch.peek_interpreter_stack,
    torch._C._len_torch_dispatch_stack,
)

# torch.fx records: the thread's own flag since torch 2.15, before that any thread's
recording = getattr(fx, "_get_is_fx_tracing", None) or (lambda: fx._is_fx_tracing_flag)

UNMOVED = nullcontext()

MODES = {
    torch._C._TorchDispatchModeKey.PROXY: "make_fx",
    torch._C._TorchDispatchModeKey.FUNCTIONAL: "functionalization",
    torch._C._TorchDispatchModeKey.FAKE: "FakeTensorMode",
}


def active(*given: object) -> str | None:
    """The name of the transform that this thread, or a tensor among `given`, is under; None where
    there is none.

    Of the thread: torch.jit.trace, torch.export, a transform of torch.func, make_fx,
    FakeTensorMode. Of a tensor: a forward-mode tangent, a subclass that dispatches by itself and so
    need not have memory.
    """
    if tracing():
        return "torch.jit.trace"
    functorch = innermost()
    if functorch is not None:
        return f"torch.func ({functorch.key().name.lower()})"
    # recording only says that looking is worth while
    if modes() or recording():
        # make_fx(..., pre_dispatch=True)
        before = torch._C._dispatch_tls_is_dispatch_key_included("PreDispatch")
        for key, name in MODES.items():
            if torch._C._get_dispatch_mode(key) is not None or (name == "make_fx" and before):
                return "torch.export" if torch.compiler.is_exporting() else name
    for tensor in given:
        kind = type(tensor)
        if isinstance(tensor, Tensor) and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
            return kind.__name__
    return "forward-mode differentiation" if tangents(given) else None


def watched() -> bool:
    """May a transform be active in this thread? What needs a closer look, `active`, is in doubt."""
    return (
        tracing()
        or innermost() is not None
        or modes() > 0
        or recording()
        or forward_ad._current_level >= 0
    )


def hides_from_compiler() -> bool:
    """Is a transform active that torch.compile refuses, or whose forward-mode tangents, of any
    tensor, its graphs drop?
    """
    return forward_ad._current_level >= 0 or active() is not None


def tangents(given: object) -> bool:
    """Has a tensor in this tree a forward-mode tangent? Levels are any thread's, tangents are the
    tensor's own.
    """
    if forward_ad._current_level < 0:
        return False
    return any(
        isinstance(v, Tensor) and forward_ad.unpack_dual(v).tangent is not None
        for v in tree_leaves(given)
    )


def beneath() -> AbstractContextManager:
    """In it tensors are made, and read, as outside torch.func."""
    return UNMOVED if innermost() is None else torch._C._DisableFuncTorch()


def bare(where: str, value: Tensor) -> Tensor:
    """The tensor beneath the gradients of torch.func, whose numbers are read under `beneath`;
    RuntimeError, one sentence, for one that vmap gives each call another part of.
    """
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(value):
        value = functorch.get_unwrapped(value)
    if functorch.is_batchedtensor(value):
        raise RuntimeError(
            f"{where}: timesteps under torch.func (vmap), where they cannot be read; samples alone "
            "under it are accepted"
        )
    return value


def refuse(where: str, *given: object) -> None:
    """RuntimeError, one sentence, under a transform."""
    name = active(*given)
    if name is not None:
        raise RuntimeError(
            f"{where}: called under {name}, which cannot see the steps; Sampler(..., "
            "differentiable=True) is accepted there"
        )
