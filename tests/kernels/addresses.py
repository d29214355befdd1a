"""Every address that Triton's interpreter reads or writes, looked at before it does.

A masked place is not looked at. Concrete: it follows branches on numbers from memory, indices,
loops and tuples of pointers, and sees only what a run does; a place beyond a row, but within its
tensor, is for the tests of values.
"""

import contextlib
import traceback

import numpy as np
from triton.runtime import interpreter


class OutsideError(Exception):
    """An address in none of the tensors that a kernel was given."""


def _named(arguments, prefix=""):
    """(name, first byte, byte behind the last) of each tensor among a kernel's arguments."""
    for name, value in arguments:
        if isinstance(value, tuple):
            inner = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
            yield from _named(inner, f"{prefix}{name}.")
        elif hasattr(value, "data_ptr") and value.numel():
            span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
            yield f"{prefix}{name}", value.data_ptr(), value.data_ptr() + span * value.itemsize


def _line() -> str:
    """The innermost line of a kernel that is running."""
    ours = [f for f in traceback.extract_stack() if "kernels/" in f.filename]
    return next(f"{f.name}: {f.line}" for f in reversed(ours) if f.filename != __file__)


@contextlib.contextmanager
def checked():
    """Within this, an access outside all tensors of the launch raises, and says which is nearest:
    an InterpreterError that holds an OutsideError's words.
    """
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    tensors: list[tuple[str, int, int]] = []

    def look(what, pointer, mask):
        taken = np.broadcast_to(mask.astype(bool), pointer.data.shape)
        at = pointer.data[taken].astype(np.int64).reshape(-1, 1)
        size = max(1, pointer.get_element_ty().primitive_bitwidth // 8)
        names, low, high = zip(*tensors, strict=True)
        out = at[~((at >= low) & (at + size <= high)).any(1)]
        if len(out):
            k = int(np.minimum(abs(out[0] - low), abs(out[0] - high)).argmin())
            raise OutsideError(
                f"{what} of {len(out)} numbers outside every tensor, the first {out[0, 0] - low[k]}"
                f" bytes from the start of {names[k]} of {high[k] - low[k]}, in {_line()}"
            )

    def load(self, pointer, mask, *rest):
        look("load", pointer, mask.data)
        return kept[builder, "create_masked_load"](self, pointer, mask, *rest)

    def store(self, pointer, value, mask, *rest):
        look("store", pointer, mask.data)
        return kept[builder, "create_masked_store"](self, pointer, value, mask, *rest)

    def exchange(self, operation, pointer, value, mask, *rest):
        look("atomic", pointer, mask.data)
        return kept[builder, "create_atomic_rmw"](self, operation, pointer, value, mask, *rest)

    def call(self, *arguments, **options):
        tensors[:] = _named([*zip(self.arg_names, arguments, strict=False), *options.items()])
        return kept[executor, "__call__"](self, *arguments, **options)

    hooks = {
        (builder, "create_masked_load"): load,
        (builder, "create_masked_store"): store,
        (builder, "create_atomic_rmw"): exchange,
        (executor, "__call__"): call,
    }
    kept = {(owner, name): getattr(owner, name) for owner, name in hooks}
    for (owner, name), hook in hooks.items():
        setattr(owner, name, hook)
    try:
        yield
    finally:
        for (owner, name), own in kept.items():
            setattr(owner, name, own)
