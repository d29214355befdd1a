"""How far end points are from each other, and what each element counts.

    mse(a, b) = mean w (a - b)^2      psnr(a, b) = 10 log10(range^2 / mse(a, b)) dB

with range = 2 for data in [-1, 1] and w = 1, or the weights of `element_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

DATA_RANGE = 2.0  # data in [-1, 1]


def mse(a: Any, b: Any, weight: Any = None) -> float:
    """mean w (a - b)^2 over all samples and elements, in float64.

    a, b [B,*] NumPy or torch, equal shapes; weight as `element_weights` takes it.
    """
    return float(_squared(a, b, "mse", weight).mean())


def max_abs(a: Any, b: Any) -> float:
    """max |a - b|. a, b [B,*] NumPy or torch, equal shapes."""
    return float(np.sqrt(_squared(a, b, "max_abs").max()))


def psnr(a: Any, b: Any, data_range: float = DATA_RANGE, weight: Any = None) -> float:
    """10 log10(data_range^2 / mse) in dB, the mse over all samples together.

    inf for equal inputs, nan where one holds NaN.
    """
    return decibel(mse(a, b, weight), data_range)


def psnr_each(a: Any, b: Any, data_range: float = DATA_RANGE, weight: Any = None) -> np.ndarray:
    """Each sample's own PSNR in dB [B]. a, b [B,*]."""
    each = _squared(a, b, "psnr_each", weight)
    return np.array([decibel(e, data_range) for e in each.reshape(len(each), -1).mean(axis=1)])


def psnr_quartiles(
    a: Any, b: Any, data_range: float = DATA_RANGE, weight: Any = None
) -> tuple[float, float, float]:
    """The quartiles (25, 50, 75 %) over samples of each sample's own PSNR in dB. a, b [B,*]."""
    each = _squared(a, b, "psnr_quartiles", weight)
    each = each.reshape(len(each), -1).mean(axis=1)
    # On the mse, where a sample of error 0 is an ordinary number.
    low, mid, high = np.quantile(each, [0.75, 0.5, 0.25])
    return decibel(low, data_range), decibel(mid, data_range), decibel(high, data_range)


def element_weights(where: str, weight: Any, shape: Sequence[int]) -> np.ndarray | None:
    """Weights of the elements of samples [B,*] as float64 [B,D], scaled to a mean of 1 in every
    sample, so that what has weight 0 (padding) counts for nothing; None for None.

    weight: numbers of at least 0, or True and False, that stretch to [B,*] where they have 1;
    [*] is every sample's. ValueError for others, and for a sample without any weight.
    """
    if weight is None:
        return None
    w, shape = _float64(weight), tuple(shape)
    own = w.reshape(1, *w.shape) if w.ndim == len(shape) - 1 else w
    fits = own.ndim == len(shape) and all(
        n in (1, m) for n, m in zip(own.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{where}: weight {list(w.shape)} for samples {list(shape)}; {list(shape)}, or 1 in "
            f"place of any of these, or {list(shape[1:])}, is accepted"
        )
    if not (np.isfinite(w).all() and (w >= 0).all()):
        raise ValueError(f"{where}: weight holds a number below 0 or not finite; others are needed")
    own = np.broadcast_to(own, shape).reshape(shape[0], -1)
    mean = own.mean(1, keepdims=True)
    if not (mean > 0).all():
        raise ValueError(
            f"{where}: every weight of sample {int(np.argmin(mean))} is 0; one above 0 in every "
            "sample is needed"
        )
    return own / mean


def _squared(a: Any, b: Any, where: str, weight: Any = None) -> np.ndarray:
    """w (a - b)^2 [B,*]."""
    a, b = _float64(a), _float64(b)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(
            f"{where}: shapes {list(a.shape)} and {list(b.shape)}; two arrays of one shape, with "
            "at least one element, are needed"
        )
    w = element_weights(where, weight, a.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        return (a - b) ** 2 if w is None else w.reshape(a.shape) * (a - b) ** 2


def _float64(a: Any) -> np.ndarray:
    a = a.detach().cpu().double().numpy() if hasattr(a, "detach") else a
    return np.asarray(a, dtype=np.float64)


def decibel(error: float, data_range: float = DATA_RANGE) -> float:
    """10 log10(data_range^2 / error) of a mean squared error; inf at 0, -inf at inf, nan at nan."""
    truth = "bool" in str(getattr(data_range, "dtype", type(data_range)))
    span = math.nan if truth or np.ndim(data_range) else float(data_range)
    if not (span > 0 and math.isfinite(span)):
        raise ValueError(f"psnr: data_range={data_range!r:.60}; a finite number above 0 is needed")
    if error == 0:
        return math.inf
    if not math.isfinite(error):
        return -math.inf if error == math.inf else math.nan
    return 10 * math.log10(span**2 / error)
