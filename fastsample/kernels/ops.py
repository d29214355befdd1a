"""The torch library `fastsample`: how a functional op is defined, told to torch's compilers, and
given its gradient.

`Library.define` and `impl`, never the `custom_op` decorator, which costs four times as much a call.
Those registered here are functional: one that writes into its arguments would drop gradients in
silence. `step_` (`fastsample.runtime.step_op`) does, and refuses what requires grad.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import transforms

LIBRARY = torch.library.Library("fastsample", "DEF")


def register(
    name: str, schema: str, kernel: Callable, fake: Callable, definition: Callable | None = None
) -> Callable:
    """Define fastsample::name and return the function that runs it. `kernel` runs it, `fake` gives
    shapes, `definition` (plain torch, same arguments) is run again for the gradient, which can be
    differentiated again, and in place of the op for the transforms of torch.func and, by the
    function returned, for forward-mode tangents, which the op refuses (RuntimeError).

    Without a definition the op has no gradient: it takes whole numbers only.
    """

    def without_tangents(*arguments):
        if transforms.tangents(arguments):
            raise RuntimeError(
                f"fastsample::{name}: an input has a forward-mode tangent, which the op drops; "
                f"fastsample.kernels.{name} is accepted"
            )
        return kernel(*arguments)

    LIBRARY.define(f"{name}{schema}")
    LIBRARY.impl(name, without_tangents, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastsample::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.fastsample, name)
    if definition is None:
        return op

    _differentiable(name, definition)
    LIBRARY.impl(name, definition, "FuncTorchDynamicLayerFrontMode")
    return lambda *arguments: (
        definition(*arguments) if transforms.tangents(arguments) else op(*arguments)
    )


def one_device(where: str, *tensors: Tensor) -> None:
    """ValueError where tensors lie on several devices: a kernel would follow one's address on
    another's.
    """
    devices = sorted({str(v.device) for v in tensors})
    if len(devices) > 1:
        raise ValueError(f"{where}: tensors are on {', '.join(devices)}; one device is accepted")


def _differentiable(name: str, definition: Callable) -> None:
    """Reverse mode for fastsample::name: the definition is run again, under a graph of its own
    where the gradient itself is differentiated.
    """

    def setup(ctx, inputs, output):
        leaves, ctx.structure = pytree.tree_flatten(tuple(inputs), is_leaf=_is_leaf)
        ctx.plain = [None if isinstance(v, Tensor) else v for v in leaves]
        ctx.places = [k for k, v in enumerate(leaves) if isinstance(v, Tensor)]
        ctx.save_for_backward(*(leaves[k] for k in ctx.places))

    def backward(ctx, *gradients):
        leaves = list(ctx.plain)
        for k, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            with torch.enable_grad():  # one given twice has a gradient at each place
                leaves[k] = tensor.view_as(tensor)
        wanted = [k for k in ctx.places if leaves[k].requires_grad]
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            outputs = definition(*pytree.tree_unflatten(leaves, ctx.structure))
        ends = zip(pytree.tree_leaves(outputs), pytree.tree_leaves(gradients), strict=True)
        given = [(o, g) for o, g in ends if g is not None and o.requires_grad]
        outputs, gradients = ([pair[k] for pair in given] for k in range(2))
        words = {"allow_unused": True, "create_graph": again}
        found = torch.autograd.grad(outputs, [leaves[k] for k in wanted], gradients, **words)
        result = [None] * len(leaves)
        for k, gradient in zip(wanted, found, strict=True):
            result[k] = gradient
        return tuple(pytree.tree_unflatten(result, ctx.structure))

    torch.library.register_autograd(
        f"fastsample::{name}", backward, setup_context=setup, lib=LIBRARY
    )


def _is_leaf(value: object) -> bool:
    """Only the argument tuple and lists of tensors are taken apart; a list of ints is one argument
    without a gradient.
    """
    return not isinstance(value, tuple) and not (
        isinstance(value, list) and all(isinstance(v, Tensor) for v in value)
    )
