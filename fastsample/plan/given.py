"""Numbers as callers give them: of Python, NumPy or torch, of any dtype and on any device. torch is
not imported here; its tensors are known by what they answer.
"""

from __future__ import annotations

import math
import sys
from numbers import Real
from operator import index
from typing import Any

import numpy as np

DIGITS = 6  # of a published number: 1.57080 for pi/2; float32 has one more
BITS = {"bfloat16": 8, "float16": 11}
EDGE_AT_0 = 2.0**-21  # four ulp of float32 at 1


def rounding(value: Any) -> float:
    """How far a number of this type may be, relatively, from one it stands for: half a unit of the
    last of DIGITS, or of its own last bit in a type of 16.
    """
    kept = bits(value)
    if kept is None:
        return 0.5 * 10.0 ** (1 - DIGITS)
    return 2.0 ** (-1 - kept) / (abs(math.frexp(value)[0]) or 1.0)


def bits(value: Any) -> int | None:
    """How many bits of a number its type of 16 keeps; None for any other type."""
    return BITS.get(str(getattr(value, "dtype", "")).removeprefix("torch."))


def plain(value: Any) -> Any:
    """One number of NumPy or torch as Python's own; anything else as it is."""
    try:
        return value.item() if getattr(value, "ndim", None) == 0 else value
    except (AttributeError, RuntimeError):  # a tensor without numbers, on the device "meta"
        return value


def real(value: Any) -> float | None:
    """A finite real number as a float; None for anything else, True and False included."""
    value = plain(value)
    try:
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if number else None
    except OverflowError:  # an int of 400 digits is no float
        return None


def integer(value: Any) -> int | None:
    """A whole number of Python, NumPy or torch as an int; None for anything else, True and False of
    each included.
    """
    kind = str(getattr(value, "dtype", ""))
    try:
        return None if isinstance(value, bool) or "bool" in kind else index(value)
    except (TypeError, RuntimeError):
        return None


def reals(values: Any) -> np.ndarray | None:
    """Real numbers as float64 in the shape they were given in, NaN and infinities kept; None where
    one of them is no number, or rows differ in length.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return values.astype(np.float64)
    try:
        listed = isinstance(values, (list, tuple))
        array = np.asarray([*map(_of_numpy, values)] if listed else _of_numpy(values))
        numbers = array.dtype.kind in "biuf" or all(isinstance(value, Real) for value in array.flat)
        return array.astype(np.float64) if numbers else None
    except (OverflowError, RuntimeError, TypeError, ValueError):
        return None


def _of_numpy(value: Any) -> Any:
    """A tensor of torch as an array; bfloat16 has none of its own."""
    if not hasattr(value, "detach"):
        return value
    if value.is_complex():
        raise TypeError("no real numbers")
    return value.detach().cpu().double().numpy()


def numbers(where: str, values: Any) -> np.ndarray:
    """The same without a NaN, or a ValueError that begins with `where`."""
    found = reals(values)
    if found is None or np.isnan(found).any():
        printed = f"{values!r:.60}" if found is None else "nan"
        raise ValueError(f"{where} = {printed}; a number, or a list of numbers, is accepted")
    return found


def edged(values: np.ndarray, low: float, high: float = math.inf) -> np.ndarray:
    """The values, with the edge itself in place of each that is by rounding alone outside
    [low, high], to DIGITS of the edge; others stay as they are, to be refused.
    """
    for edge, beyond in ((low, values < low), (high, values > high)):
        if beyond.any():
            size = math.floor(math.log10(abs(edge))) if edge else 0
            near = 0.5 * 10.0 ** (size + 1 - DIGITS) if edge else EDGE_AT_0
            values = np.where(beyond & (np.abs(values - edge) <= near), edge, values)
    return values


def within(value: Any, low: float, high: float = math.inf) -> float | None:
    """A real number in [low, high], its edges as `edged` takes them; None for anything else."""
    number = real(value)
    if number is None:
        return None
    number = float(edged(np.asarray(number), low, high))
    return number if low <= number <= high else None


def between(where: str, value: Any, low: float = 0.0, high: float = math.inf) -> float:
    """A real number strictly between low and high, or a ValueError that begins with `where`."""
    number = real(value)
    if number is None or not low < number < min(high, sys.float_info.max):
        raise ValueError(
            f"{where} = {value!r:.60}; a number between {low:g} and {high:g}, ends excluded, is "
            "accepted"
        )
    return number
