"""What a model returned, held against what was asked of it: one rule for every loop. An answer is
a tensor, or holds one (`only`), in a dtype that the one it was asked in holds exactly: bfloat16
where float32 was asked, as under autocast, is taken. Nothing is broadcast, and nothing rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# what one dtype holds of another's numbers, to the bit
EXACT = {
    torch.float32: (torch.float16, torch.bfloat16),
    torch.float64: (torch.float32, torch.float16, torch.bfloat16),
}


WIDER = "model_dtype=torch.float32 or torch.bfloat16, or a model with input_scale,"


def only(f: object) -> object:
    """The tensor that an answer is or holds: the only one of a tuple or list, or the one called
    `sample`, an attribute or a key, as diffusers' models have it. Any other answer stays as it is.
    """
    if isinstance(f, Tensor):
        return f
    if isinstance(f, (list, tuple)):
        held = f[0] if len(f) == 1 else None
    else:
        held = f.get("sample") if isinstance(f, Mapping) else getattr(f, "sample", None)
    return held if isinstance(held, Tensor) else f


def branches(
    where: str, f: object, like: Tensor, dtype: torch.dtype, used: Sequence[bool], row: int
) -> list[Tensor | None]:
    """The G outputs [B,*] in `dtype` of a model's answer, branch-major [G*B,*] or a list of G, each
    as `only` takes it; None: a branch this row does not use.

    like: the state [B,*], on the device that is needed. used: for each of the G branches, whether
    the row reads it. Raises ValueError or TypeError, one sentence.
    """
    f, G, size = only(f), len(used), tuple(like.shape)
    if isinstance(f, Tensor):
        needed = (G * size[0], *size[1:])
        several = f"{list(needed)} ({G} branches) or a list of {G}"
        f = _fitting(where, f, like, dtype, needed, "only that shape" if G == 1 else several)
        return [f] if G == 1 else list(f.unflatten(0, (G, -1)).unbind(0))
    if not isinstance(f, (list, tuple)) or len(f) != G:
        count = f" of {len(f)}" if isinstance(f, (list, tuple)) else ""
        several = f"a list of {G} tensors" if G > 1 else "what holds one alone or as `sample`"
        raise TypeError(
            f"{where}: the model returned {words(f)}{count}; a tensor, or {several}, is accepted"
        )
    for g, value in enumerate(f):
        if value is None and used[g]:
            raise ValueError(
                f"{where}: the model returned None for branch {g}, which row {row} uses; a tensor "
                f"of {list(size)} is needed"
            )
    fit = lambda v: _fitting(where, only(v), like, dtype, size, "only that shape")
    return [value if value is None else fit(value) for value in f]


def one(where: str, f: object, x: Tensor, row: int = 0) -> Tensor:
    """The answer [B,*] to an input x [B,*] of one branch, in its dtype."""
    return branches(where, f, x, x.dtype, (True,), row)[0]


def written(where: str, row: int | None = None) -> ValueError:
    """What a model is refused with that writes into its input; row: of the plan, where one asks."""
    at = "" if row is None else f" at row {row}"
    return ValueError(
        f"{where}: the model changed its input in place{at}; let it work on a copy (x = x + ...)"
    )


def asked(
    where: str, model: Callable, x: Tensor, t: Tensor, words: Mapping[str, Any], row: int = 0
) -> Tensor:
    """The answer [B,*] of a model of one branch to x [B,*] at t, in x's dtype. Raises ValueError
    for a model that writes into what it is given: it may be a run's own state, and the next branch
    is asked the same.
    """
    counted = [v for v in (x, t) if not v.is_inference()]
    before = [v._version for v in counted]
    f = model(x, t, **words)
    if [v._version for v in counted] != before:
        raise written(where)
    return one(where, f, x, row)


def _fitting(
    where: str, f: object, like: Tensor, dtype: torch.dtype, needed: tuple[int, ...], accepted: str
) -> Tensor:
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
    if f.dtype != dtype and f.dtype not in EXACT.get(dtype, ()):
        other = f" or pass model_dtype={f.dtype}" if f.is_floating_point() else ""
        raise TypeError(
            f"{where}: the model returned {f.dtype}, asked in {dtype}; cast its output{other}"
        )
    if f.device != like.device:
        raise ValueError(
            f"{where}: the model returned a tensor on {f.device} for a sample on {like.device}; "
            "the same device is needed"
        )
    return f if f.dtype == dtype else f.to(dtype)


def words(value: object) -> str:
    """A value in words, for a sentence that refuses it."""
    if isinstance(value, Tensor):
        return f"a {value.layout} tensor of {list(value.shape)}"
    return f"a {type(value).__name__}"


def refuse_status(
    words: Sequence[int], plan, asked: torch.dtype, elements: int, where: str = "Sampler"
) -> None:
    """FloatingPointError naming the samples whose status word is not 0, and the first such row of
    the plan; asked: the dtype the model is asked in; elements: numbers in a sample.
    """
    bad = [b for b, word in enumerate(words) if word]
    if bad:
        names = ", ".join(map(str, bad[:8])) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        row = min(words[b] >> 8 & 0xFFFFFF for b in bad)
        raise FloatingPointError(
            f"{where}: sample {names} became non-finite at row {row}; "
            f"{fault(plan, asked, elements, row)}"
        )


def fault(plan, asked: torch.dtype, elements: int, row: int) -> str:
    """What made the state non-finite at a row of the plan, for a sentence: an input beyond what
    float16 holds where noise alone is: c·sigma·sqrt(2 ln n), the largest of n unit normals; else
    the model's output.
    """
    most, size = torch.finfo(asked).max, float(abs(plan.c[row - 1]) * plan.sigma[row])
    if size * math.sqrt(2 * math.log(max(elements, 2))) > most:
        return (
            f"its input, noise of {size:.4g} there, is too large for {asked} (up to {most:g}); "
            f"{WIDER} is accepted"
        )
    return "the model returned NaN, Inf or a value too large for the state"
