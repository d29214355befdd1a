"""What a model returned, held against what was asked of it: one check for every loop. Nothing is
broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check(
    where: str, f: object, like: Tensor, dtype: torch.dtype, used: Sequence[bool], row: int
) -> None:
    """Refuse f unless it is branch-major [G*B,*], or a list of G tensors [B,*] (None: a branch this
    row does not use), in `dtype`.

    like: the state [B,*], on the device that is needed. used: for each of the G branches, whether
    the row reads it. Raises ValueError or TypeError, one sentence.
    """
    G, size = len(used), tuple(like.shape)
    if isinstance(f, Tensor):
        needed = (G * size[0], *size[1:])
        several = f"{list(needed)} ({G} branches) or a list of {G}"
        _fits(where, f, like, dtype, needed, "only that shape" if G == 1 else several)
        return
    if not isinstance(f, (list, tuple)) or len(f) != G:
        count = f" of {len(f)}" if isinstance(f, (list, tuple)) else ""
        raise TypeError(
            f"{where}: the model returned {words(f)}{count}; a tensor, or a list of {G} tensors, "
            "is accepted"
        )
    for g, value in enumerate(f):
        if value is not None:
            _fits(where, value, like, dtype, size, "only that shape")
        elif used[g]:
            raise ValueError(
                f"{where}: the model returned None for branch {g}, which row {row} uses; a tensor "
                f"of {list(size)} is needed"
            )


def branches(
    where: str, f: object, like: Tensor, dtype: torch.dtype, used: Sequence[bool], row: int
) -> list[Tensor | None]:
    """The G outputs [B,*] of a model's answer that `check` accepts; None: a branch unused."""
    check(where, f, like, dtype, used, row)
    if not isinstance(f, Tensor):
        return list(f)
    return [f] if len(used) == 1 else list(f.unflatten(0, (len(used), -1)).unbind(0))


def _fits(
    where: str, f: object, like: Tensor, dtype: torch.dtype, needed: tuple[int, ...], accepted: str
) -> None:
    if not isinstance(f, Tensor) or f.layout != torch.strided:
        raise TypeError(
            f"{where}: the model returned {words(f)}; a dense tensor of {list(needed)} is accepted"
        )
    if f.shape != needed:
        raise ValueError(
            f"{where}: the model returned {list(f.shape)} for a sample of {list(like.shape)}; "
            f"{accepted} is accepted, nothing is broadcast"
        )
    if f.is_complex():
        raise TypeError(
            f"{where}: the model returned {f.dtype}, asked in {dtype}; a real output is accepted"
        )
    if f.dtype != dtype:
        raise TypeError(
            f"{where}: the model returned {f.dtype}, asked in {dtype}; cast its output or pass "
            f"model_dtype={f.dtype}"
        )
    if f.device != like.device:
        raise ValueError(
            f"{where}: the model returned a tensor on {f.device} for a sample on {like.device}; "
            "the same device is needed"
        )


def words(value: object) -> str:
    """A value in words, for a sentence that refuses it."""
    if isinstance(value, Tensor):
        return f"a {value.layout} tensor of {list(value.shape)}"
    return f"a {type(value).__name__}"


def refuse_status(words: Sequence[int], where: str = "Sampler") -> None:
    """FloatingPointError naming the samples whose status word is not 0, and the first such row."""
    bad = [b for b, word in enumerate(words) if word]
    if bad:
        names = ", ".join(map(str, bad[:8])) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        row = min(words[b] >> 8 & 0xFFFFFF for b in bad)
        raise FloatingPointError(
            f"{where}: sample {names} became non-finite at row {row}; the model returned NaN, Inf "
            "or a value too large for the state"
        )
