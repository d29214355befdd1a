"""A schedule of two functions of somebody's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..plan.given import edged, real, reals
from ._schedule import Schedule

PROBES = 1025  # times at which the functions are looked at first
NEAR = 1e-9  # of alpha at t_zero to 1, hence of the image that a run returns
# of alpha at t_max and of sigma at t_zero, where they end in 0 but for rounding: cos(pi/2) = 6e-17
ROUNDED = 4.0 * float(np.finfo(np.float64).eps)
SHOWN = 5  # levels in the JSON form


def from_functions(
    alpha: Callable[[np.ndarray], Any],
    sigma: Callable[[np.ndarray], Any],
    *,
    t_min: float = 1e-3,
    t_max: float = 1.0,
    t_zero: float | None = 0.0,
) -> FromFunctions:
    """The schedule x_t = alpha(t)·x0 + sigma(t)·eps of two functions of times [n], float64, that
    give as many numbers.

    They are asked from t_zero to t_max, where sigma(t_zero) = 0 and alpha(t_zero) = 1; with
    t_zero=None, for a sigma that never is 0, from t_min up, and sigma = 0 stands at t_min - 1: in
    between alpha and sigma/alpha are linear in t. alpha(t_max) may be 0. What is left of either 0
    by rounding is 0. ln(alpha/sigma) must fall strictly: it is looked at in 1,025 even times and
    towards both ends. Its inverse is found by bisection, to the last digit of t.

    A note keeps the levels at five times, to tell schedules apart, and no function: a plan of such
    a schedule has no `remake`. ValueError, one sentence, for functions that are no schedule.
    """
    return FromFunctions(alpha, sigma, t_min, t_max, t_zero)


@dataclass(frozen=True)
class FromFunctions(Schedule):
    """What `from_functions` makes."""

    alpha_at: Callable
    sigma_at: Callable
    t_min: float
    t_max: float
    zero: float | None
    t_zero = property(lambda self: self.t_min - 1.0 if self.zero is None else self.zero)
    _low = property(lambda self: self.t_min if self.zero is None else self.zero)

    @property
    def t_finite(self) -> float:
        """As far from an end with alpha = 0 as t_min is from sigma = 0."""
        first, span = self.t_min - self._low, self.t_max - self._low
        return self.t_max if self._values(self.t_max)[0] else self.t_max - (first or span / 1000)

    def __post_init__(self):
        for name in ("alpha_at", "sigma_at"):
            if not callable(getattr(self, name)):
                _refuse(f"{name[:5]} is a {type(getattr(self, name)).__name__}; a function")
        times = [real(v) for v in (self._low, self.t_min, self.t_max)]
        rise = None not in times and times[0] <= times[1] < times[2]
        if not rise or times[0] == times[1] and self.zero is not None:
            _refuse(
                f"t_zero = {self.zero!r:.40}, t_min = {self.t_min!r:.40}, t_max = "
                f"{self.t_max!r:.40}; numbers that rise, or t_zero=None,"
            )
        kept = {"zero": self.zero if self.zero is None else times[0]}
        for name, value in (kept | {"t_min": times[1], "t_max": times[2]}).items():
            object.__setattr__(self, name, value)
        self._look()

    def _look(self) -> None:
        """Refuse what is no schedule."""
        low, high = self._low, self.t_max
        near = 2.0 ** -np.arange(2.0, 30.0)  # towards both ends
        even = np.linspace(0.0, 1.0, PROBES)
        t = low + (high - low) * np.unique(np.concatenate([even, near, 1.0 - near]))
        alpha, sigma = self._values(t)
        for name, values in (("alpha", alpha), ("sigma", sigma)):
            if not (np.isfinite(values) & (values >= 0.0)).all():
                at = int(np.argmin(np.isfinite(values) & (values >= 0.0)))
                _refuse(f"{name}({t[at]:g}) = {values[at]:g}; finite numbers from 0 up")
        if self.zero is not None and (sigma[0] != 0.0 or abs(alpha[0] - 1.0) > NEAR):
            _refuse(
                f"alpha = {alpha[0]:g} and sigma = {sigma[0]:g} at t_zero = {low:g}; 1 and 0 "
                "there, or t_zero=None,"
            )
        with np.errstate(divide="ignore"):
            level = self._point(t)[2]
        falls = np.diff(level) < 0.0
        if not falls.all():
            at = int(np.argmin(falls))
            _refuse(
                f"ln(alpha/sigma) is {level[at]:g} at t = {t[at]:g} and {level[at + 1]:g} at "
                f"{t[at + 1]:g}; a signal that falls strictly against the noise"
            )

    def _values(self, t) -> tuple[np.ndarray, np.ndarray]:
        """alpha and sigma at times from t_zero, or t_min where there is none, to t_max."""
        t = np.asarray(t, dtype=np.float64)
        flat, found = t.reshape(-1), []
        with np.errstate(all="ignore"):
            for name, function in (("alpha", self.alpha_at), ("sigma", self.sigma_at)):
                values = reals(function(flat.copy()))
                if values is None or values.shape != flat.shape:
                    shape = "no numbers" if values is None else f"shape {list(values.shape)}"
                    _refuse(f"{name} of {flat.size} times gives {shape}; as many numbers")
                found.append(values.reshape(t.shape))
        alpha, sigma = found
        alpha = np.where((t == self.t_max) & (np.abs(alpha) <= ROUNDED * sigma), 0.0, alpha)
        return alpha, np.where((t == self.zero) & (np.abs(sigma) <= ROUNDED * alpha), 0.0, sigma)

    def _point(self, t):
        alpha, sigma = self._values(np.maximum(t, self._low))
        part = np.minimum(t - self.t_zero, 1.0) if self.zero is None else np.ones_like(t)
        level = np.log(alpha) - np.log(sigma) - np.log(part)
        ratio, alpha = part * sigma / np.where(part < 1.0, alpha, 1.0), 1.0 + part * (alpha - 1.0)
        return alpha, np.where(part < 1.0, ratio * alpha, sigma), level

    def _time(self, level):
        lowest = float(self._point(np.array(self.t_max))[2])
        if (edged(level, lowest) < lowest).any():
            raise ValueError(
                f"FromFunctions.time: half_log_snr = {np.min(level):g}; values from {lowest:g}, "
                "that at t_max, are accepted"
            )
        low, high = np.full(level.shape, self.t_zero), np.full(level.shape, self.t_max)
        middle = 0.5 * (low + high)
        # t_zero itself would be reached through every smaller number
        sought = np.where(level == np.inf, lowest, level)
        while ((low < middle) & (middle < high)).any():
            cleaner = self._point(middle)[2] > sought
            low, high = np.where(cleaner, middle, low), np.where(cleaner, high, middle)
            middle = 0.5 * (low + high)
        return np.where(level == np.inf, self.t_zero, np.where(level <= lowest, self.t_max, middle))

    def to_json(self) -> dict:
        """What it is, and no way back: from_json refuses it."""
        t = np.linspace(self._low, self.t_max, SHOWN)
        levels = np.transpose(self._values(t)).tolist()
        times = {name: getattr(self, name) for name in ("t_min", "t_max", "t_zero")}
        return {"name": "FromFunctions", **times, "levels": levels}

    @classmethod
    def _of_words(cls, words: dict) -> NoReturn:
        raise ValueError(
            "schedules.from_json: a schedule of two functions, which no note keeps; the solver, "
            "with schedules.from_functions of the same two, is accepted"
        )


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"schedules.from_functions: {what} is accepted")
