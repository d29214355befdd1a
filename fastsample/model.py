"""Model: a callable and its words (what it predicts, on which schedule, what it is told), and the
maps between predictions.

With x = alpha·x0 + sigma·eps, a network's output `out` gives x0 = p·x + q·out:

    prediction  out                   p                q                     n²
    x0          x0                    0                1
    eps         eps                   1/alpha          -sigma/alpha          refused at alpha = 0
    v           alpha·eps - sigma·x0  alpha/n²         -sigma/n²             alpha² + sigma²
    flow        eps - x0              1/(alpha+sigma)  -sigma/(alpha+sigma)
    edm         F                     alpha·sd²/n²     sigma·sd/n            sigma² + alpha²·sd²
    trigflow    F                     alpha/n²         -sigma/n              alpha² + (sigma/sd)²

sd = sigma_data, the standard deviation of x0. Sources: Salimans & Ho 2022 (arXiv:2202.00512, v),
Karras et al. 2022 (2206.00364, eq. 7 and table 1, for x/alpha), Lu & Song 2025 (2410.11081, eq. 5,
for the point on the circle x/n). Floor 0: NumPy only.
"""

from __future__ import annotations

import copy
import hashlib
import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from .plan.given import numbers, real, reals

PREDICTIONS = ("x0", "eps", "v", "flow", "edm", "trigflow")
STORED = ("x0", "eps", "flow", "d")
# Karras et al. 2022; used where neither the model nor its schedule names one
DEFAULT_SIGMA_DATA = 0.5


def to_x0(prediction: str, alpha, sigma, sigma_data: float = DEFAULT_SIGMA_DATA):
    """(p, q) with x0 = p·x + q·out, float64, shapes as alpha and sigma. ValueError for eps at
    alpha = 0: x holds no trace of x0 there.
    """
    if prediction == "eps" and not np.all(alpha):
        raise ValueError(
            "to_x0: prediction 'eps' at alpha = 0; another prediction, or a grid starting where "
            "alpha > 0, is accepted"
        )
    p, q, _, _ = _halves("to_x0", prediction, alpha, sigma, sigma_data)
    return p[()], q[()]


def to_eps(prediction: str, alpha, sigma, sigma_data: float = DEFAULT_SIGMA_DATA):
    """(p, q) with eps = p·x + q·out, in closed forms that keep their digits as sigma -> 0.
    ValueError for x0 at sigma = 0.
    """
    if prediction == "x0" and not np.all(sigma):
        raise ValueError(
            "to_eps: prediction 'x0' at sigma = 0; eps is accepted from x only where sigma > 0"
        )
    _, _, p, q = _halves("to_eps", prediction, alpha, sigma, sigma_data)
    return p[()], q[()]


def _halves(where: str, prediction: str, alpha, sigma, sd: float) -> tuple[np.ndarray, ...]:
    """(p, q) of x0, then those of eps; not finite where there are none, which is refused before."""
    alpha, sigma = numbers(f"{where}: alpha", alpha), numbers(f"{where}: sigma", sigma)
    with np.errstate(divide="ignore", invalid="ignore"):
        if prediction == "x0":
            return np.zeros_like(alpha), np.ones_like(alpha), 1.0 / sigma, -alpha / sigma
        if prediction == "eps":
            return 1.0 / alpha, -sigma / alpha, np.zeros_like(alpha), np.ones_like(alpha)
        if prediction == "v":
            n2 = alpha**2 + sigma**2
            return alpha / n2, -sigma / n2, sigma / n2, alpha / n2
        if prediction == "flow":
            n = alpha + sigma
            return 1.0 / n, -sigma / n, 1.0 / n, alpha / n
        if prediction == "edm":
            n2 = sigma**2 + (alpha * sd) ** 2
            n = np.sqrt(n2)
            return alpha * sd**2 / n2, sigma * sd / n, sigma / n2, -alpha * sd / n
        if prediction == "trigflow":
            n2 = alpha**2 + (sigma / sd) ** 2
            n = np.sqrt(n2)
            return alpha / n2, -sigma / n, sigma / sd**2 / n2, alpha / n
    raise ValueError(
        f"{where}: prediction = {prediction!r}; one of {', '.join(PREDICTIONS)} is accepted"
    )


def to_kind(kind: str, prediction: str, alpha, sigma, sigma_data: float = DEFAULT_SIGMA_DATA):
    """(p, q) with kind = p·x + q·out. flow = eps - x0; d = (x/alpha - x0)/(sigma/alpha) = eps."""
    if kind == "x0":
        return to_x0(prediction, alpha, sigma, sigma_data)
    if kind not in STORED:
        raise ValueError(f"to_kind: kind = {kind!r}; one of {', '.join(STORED)} is accepted")
    p, q = to_eps(prediction, alpha, sigma, sigma_data)
    if kind != "flow":
        return p, q
    p0, q0 = to_x0(prediction, alpha, sigma, sigma_data)
    return p - p0, q - q0


def from_x0(kind: str, alpha, sigma):
    """(a, b) with kind = a·x + b·x0. ValueError at sigma = 0, except for x0. For a network's output
    to_kind: this cancels as sigma -> 0.
    """
    return to_kind(kind, "x0", alpha, sigma)


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A callable fn(x [B, ...], t [B], **cond) -> output [B, ...] and what its words mean.

    schedule      noise schedule x stands on
    prediction    what fn returns: "x0"; "eps"; "v", alpha·eps - sigma·x0; "flow", eps - x0; "edm"
                  or "trigflow", the bare network of those papers (`help("fastsample.model")`)
    time          what fn is told as t: None, the schedule's t (edm: ¼ ln(sigma/alpha); trigflow:
                  atan2(sigma/sd, alpha)); a number, that many times schedule.label(t), which is t,
                  for Flow sigma; "log_sigma", ¼ ln(sigma/alpha); a callable t [n] -> [n]; or a pair
                  of these for an average velocity or a flow map, which is told t [B, 2]: the time
                  of x, and that at which the step's x' stands (t, r; t - r is for fn to form)
    input_scale   fn sees input_scale·x: None, 1 (edm: 1/sqrt(sigma² + alpha²sd²); trigflow: the
                  same); "vp", 1/sqrt(alpha² + sigma²); "flow", 1/(alpha + sigma); or a callable
                  t [n] -> [n]
    sigma_data    standard deviation of x0 for edm and trigflow; None: the schedule's, else 0.5
    model_id      name written into plans; None: a hash of fn's parameters where it has any, else
                  "unknown"
    time_dtype    dtype t is cast to before fn sees it (an integer dtype is rounded to); None: as it
                  comes

    A network trained on the shifted sigma of Flow wants time=1 or time=1000, not None. Raises
    ValueError for a word it does not know.
    """

    fn: Callable | None
    schedule: Any
    prediction: str = "eps"
    time: Any = None
    input_scale: Any = None
    sigma_data: float | None = None
    model_id: str | None = None
    time_dtype: Any = None

    def __post_init__(self):
        if self.fn is not None and not callable(self.fn):
            raise ValueError(
                f"Model: fn is a {type(self.fn).__name__}; a callable fn(x, t, **cond), or None, "
                "is accepted"
            )
        if isinstance(self.schedule, type):
            raise ValueError(
                f"Model: schedule is the class {self.schedule.__name__}; "
                f"{self.schedule.__name__}(...) is accepted"
            )
        asked = ("alpha", "sigma", "half_log_snr", "time", "label")
        if not all(hasattr(self.schedule, name) for name in asked):
            raise ValueError(
                f"Model: schedule is a {type(self.schedule).__name__}; a schedule of "
                "fastsample.schedules is accepted"
            )
        self._check_words()
        spread = self.sigma_data
        if spread is None:
            spread = getattr(self.schedule, "sigma_data", DEFAULT_SIGMA_DATA)
        found = real(spread)
        if found is None or found <= 0.0:
            raise ValueError(f"Model: sigma_data = {self.sigma_data!r}; a number > 0 is accepted")
        object.__setattr__(self, "sigma_data", found)
        plain = lambda word: isinstance(word, (int, float)) or real(word) is None
        told = tuple(word if plain(word) else real(word) for word in self.told)
        object.__setattr__(self, "time", told if len(told) > 1 else told[0])

    @property
    def told(self) -> tuple:
        """Its word `time`, for each number that fn is told as t: one or two."""
        return tuple(self.time) if isinstance(self.time, (list, tuple)) else (self.time,)

    def _check_words(self):
        time, scale = self.time, self.input_scale
        named = any(_is(self.prediction, word) for word in PREDICTIONS)
        each = self.told
        told = len(each) == 2 if isinstance(time, (list, tuple)) else True
        told = told and all(
            w is None or _is(w, "log_sigma") or callable(w) or real(w) is not None for w in each
        )
        scaled = scale is None or _is(scale, "vp") or _is(scale, "flow") or callable(scale)
        cast = _is_number_type(self.time_dtype)
        for word, right, accepted in (
            ("prediction", named, f"one of {', '.join(PREDICTIONS)}"),
            ("time", told, "None, a finite number, 'log_sigma', a callable or a pair of these"),
            ("input_scale", scaled, "None, 'vp', 'flow' or a callable"),
            ("time_dtype", cast, "None, or a torch or NumPy dtype of numbers,"),
        ):
            if not right:
                given = f"{getattr(self, word)!r:.60}"
                raise ValueError(f"Model: {word} = {given}; {accepted} is accepted")

    def __repr__(self) -> str:
        fn = self.fn  # by name: a network's own repr is long
        name = "None" if fn is None else getattr(fn, "__qualname__", type(fn).__name__)
        words = ("time", "input_scale", "sigma_data", "model_id", "time_dtype")
        values = {word: getattr(self, word) for word in words}
        said = [f"{word}={value!r}" for word, value in values.items() if value is not None]
        return f"Model({', '.join([name, repr(self.schedule), repr(self.prediction), *said])})"

    def __copy__(self) -> Model:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict) -> Model:
        memo[id(self)] = twin = self.__copy__()
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __getstate__(self) -> dict:
        """For a pickle: PicklingError, one sentence, for a callable that it cannot keep."""
        words = [("fn", self.fn), *(("time", word) for word in self.told)]
        hooks = ("__reduce__", "__reduce_ex__", "__getstate__")  # with one it pickles its own way
        kind = type(self.schedule)
        plain = all(getattr(kind, hook, None) is getattr(object, hook, None) for hook in hooks)
        own = getattr(self.schedule, "__dict__", {}) if plain else {}  # of from_functions
        words += [(f"schedule's {name}", v) for name, v in own.items() if callable(v)]
        for word, value in [*words, ("input_scale", self.input_scale)]:
            refuse_unnamed(f"Model: {word}", value)
        return dict(self.__dict__)

    def times(self, t) -> np.ndarray:
        """What fn is told at the schedule's times t [n]: float64 [n], finite; the first of two."""
        return self._times(self.told[0], t)

    def scalars(self, t, to) -> np.ndarray:
        """All that fn is told at times t [n] of a step to times `to` [n]: float64 [n, 1 or 2]."""
        pairs = zip(self.told, (t, to), strict=False)
        return np.stack([self._times(word, times) for word, times in pairs], -1)

    def _times(self, word, t) -> np.ndarray:
        t = numbers("Model.times: t", t)
        if callable(word):
            told = word(t)
        elif word == "log_sigma" or (word is None and self.prediction == "edm"):
            told = -0.25 * self.schedule.half_log_snr(t)
        elif word is None and self.prediction == "trigflow":
            told = np.arctan2(self.schedule.sigma(t) / self.sigma_data, self.schedule.alpha(t))
        else:
            told = t if word is None else float(word) * self.schedule.label(t)
        return _finite("times", "time", told, t)

    def scales(self, t) -> np.ndarray:
        """What x is multiplied by before fn sees it, at times t [n]: float64 [n], finite."""
        t = numbers("Model.scales: t", t)
        if callable(self.input_scale):
            return _finite("scales", "input_scale", self.input_scale(t), t)
        if self.input_scale == "flow":
            total = self.schedule.alpha(t) + self.schedule.sigma(t)
            return _finite("scales", "input_scale", 1.0 / total, t)
        if self.input_scale == "vp":
            spread = 1.0
        elif self.prediction in ("edm", "trigflow"):
            spread = self.sigma_data  # sd·n of trigflow is the edm norm
        else:
            return np.ones_like(t)
        norm = np.hypot(self.schedule.sigma(t), self.schedule.alpha(t) * spread)
        return _finite("scales", "input_scale", 1.0 / norm, t)

    def __call__(self, x, t, **cond):
        """fn(x, t, **cond), t cast to time_dtype."""
        if self.fn is None:
            raise ValueError("Model: fn is None; a Model that is called needs a callable")
        return self.fn(x, t if self.time_dtype is None else _cast(t, self.time_dtype), **cond)

    @cached_property
    def identity(self) -> str:
        """model_id, or of fn's parameters "sha256:first/form/dtypes": a hash over their names,
        shapes, dtypes and first numbers, one over names and shapes, and the dtypes; or "unknown".
        Their numbers are waited for once for every dtype and device; first is "unread" where one
        has none (device "meta") or is of a class of somebody's own.
        """
        if self.model_id is not None:
            return str(self.model_id)
        if not hasattr(self.fn, "named_parameters"):
            return "unknown"
        named = dict(self.fn.named_parameters())
        form, values = [f"{name} {tuple(v.shape)}" for name, v in named.items()], named.values()
        kinds, first = "+".join(sorted({*map(_kind, values)})), "unread"
        if "-" not in kinds and not any(v.is_meta for v in values):
            lines = zip(form, values, _first(values), strict=True)
            first = _hash(f"{line} {v.dtype} {numbers}" for line, v, numbers in lines)[:32]
        return f"sha256:{first}/{_hash(form)[:16]}/{kinds}"

    def answer(self, kind: str, alpha, sigma):
        """(p, q) with kind = p·x + q·fn(...), as `to_kind` gives them for our prediction."""
        return to_kind(kind, self.prediction, alpha, sigma, self.sigma_data)

    def to_json(self) -> dict:
        """The words, JSON-able, as a plan's note keeps them; a callable is "callable"."""
        told = [*map(_written, self.told)]
        return {
            "prediction": self.prediction,
            "time": told if len(told) > 1 else told[0],
            "input_scale": _written(self.input_scale),
            "sigma_data": self.sigma_data,
            "model_id": self.identity,
        }


def refuse_unnamed(where: str, value: object) -> None:
    """PicklingError, one sentence, for what a pickle keeps by name and has none: a lambda, a
    function or an object of a class that was made inside a function. A pickler that takes those
    (cloudpickle, dill) is left to, where one is loaded.
    """
    while isinstance(value, (partial, MethodType)):
        value = value.func if isinstance(value, partial) else value.__self__
    own = value if isinstance(value, FunctionType) else type(value)
    by_value = {name.rpartition(".")[2] for name in sys.modules} & {"cloudpickle", "dill"}
    if "<" in own.__qualname__ and not by_value:
        what = "" if own is value else "an object of "
        raise pickle.PicklingError(
            f"{where} is {what}{own.__qualname__}, which a pickle cannot name; a function or class "
            "at the top level of a module is accepted"
        )


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _first(values: Iterable) -> list[list[float]]:
    """The first four numbers of every tensor, those of one kind by one copy from their device."""
    heads = [value.detach().flatten()[:4] for value in values]
    kinds: dict[tuple, list[int]] = {}
    for k, head in enumerate(heads):
        kinds.setdefault((type(head), head.dtype, head.device), []).append(k)
    found: list = [None] * len(heads)
    for alike in kinds.values():
        ends = np.cumsum([len(heads[k]) for k in alike])
        joined = heads[alike[0]].new_empty(int(ends[-1]))
        for k, end in zip(alike, ends, strict=True):
            joined[end - len(heads[k]) : end] = heads[k]
        numbers = joined.tolist()
        for k, end in zip(alike, ends, strict=True):
            found[k] = numbers[end - len(heads[k]) : end]
    return found


def _kind(value) -> str:
    """A parameter's dtype, and its class where that is one of somebody's own."""
    name, own = str(value.dtype).removeprefix("torch."), type(value).__name__
    return name if own in ("Parameter", "Tensor") else f"{own}-{name}"


def _finite(where: str, word: str, values, t: np.ndarray) -> np.ndarray:
    """values as float64 of t's shape, or a ValueError."""
    given, values = values, reals(values)
    if values is None or values.shape != t.shape:
        found = f"a {type(given).__name__}" if values is None else f"shape {list(values.shape)}"
        raise ValueError(
            f"Model.{where}: {word} returned {found} for {list(t.shape)} times; numbers in the "
            "same shape are accepted"
        )
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values.ravel())))
        raise ValueError(
            f"Model.{where}: {word} gives {values.flat[at]:g} at t = {t.flat[at]:g}; a finite "
            "number is accepted"
        )
    return values


def _is(value, word: str) -> bool:
    return isinstance(value, str) and value == word  # an array compared with a word is an array


def _written(word):
    """A word of a Model as a note has it."""
    number = isinstance(word, (int, float))
    return "callable" if callable(word) else float(word) if number else word


def _is_number_type(dtype) -> bool:
    """None, torch's dtype (known by what it answers, as torch is not imported here), or anything
    that NumPy takes for the dtype of real numbers.
    """
    try:
        return dtype is None or hasattr(dtype, "is_floating_point") or np.dtype(dtype).kind in "iuf"
    except TypeError:
        return False


def _cast(t, dtype):
    """t in another dtype, rounded first where that has no fraction (998.9999 is 999, not 998)."""
    if hasattr(dtype, "is_floating_point"):
        fraction = dtype.is_floating_point
    else:
        fraction = np.issubdtype(np.dtype(dtype), np.floating)
    t = t if fraction else t.round()
    return t.to(dtype) if hasattr(t, "to") else np.asarray(t).astype(dtype)
