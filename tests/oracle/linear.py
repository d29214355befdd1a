"""Vectors that know how large their terms were, and the 50-digit numbers all derivations use.

A sampler is linear in its start noise, its predictions and its noises. Fed with basis vectors in
place of those, every state it visits is its own list of coefficients. `Lin` carries such a state as
(value, mag): mag adds the absolute values of the terms that value adds with their signs, so eps *
mag is what rounding may do to each coefficient and no bound has to be typed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import mpmath
import numpy as np

mp = mpmath.MPContext()
mp.dps = 50
EPS = 2.0**-52


def extended(c) -> np.longdouble:
    """An mpf, rounded once to the 64-bit significand of long double (two float64 parts where long
    double is float64).
    """
    high = float(c)
    low = float(c - high) if np.isfinite(high) else 0.0
    return np.longdouble(high) + np.longdouble(low)


@dataclass(frozen=True, eq=False, repr=False)
class Lin:
    """A state as a combination of basis vectors: value [D] and mag [D] >= |value|, long double."""

    value: np.ndarray
    mag: np.ndarray
    __array_ufunc__ = None

    def __repr__(self) -> str:
        """Short: mpmath formats what it cannot multiply before it lets the other side try."""
        return "Lin"

    @classmethod
    def of(cls, value) -> Lin:
        value = np.asarray(value, np.longdouble)
        return cls(value, np.abs(value))

    def __add__(self, other: Lin) -> Lin:
        return Lin(self.value + other.value, self.mag + other.mag)

    def __sub__(self, other: Lin) -> Lin:
        return Lin(self.value - other.value, self.mag + other.mag)

    def __neg__(self) -> Lin:
        return Lin(-self.value, self.mag)

    def __rmul__(self, c) -> Lin:
        c = extended(mp.mpf(c))
        return Lin(c * self.value, abs(c) * self.mag)

    def __mul__(self, c) -> Lin:
        return self.__rmul__(c)

    def through(self, other: Lin) -> Lin:
        """The same state, reached by way of `other`: terms of that size were added and cancelled on
        the way.
        """
        return Lin(self.value, self.mag + other.mag)

    def defect(self, other: np.ndarray) -> float:
        """Largest |value - other| / mag over the coefficients, with 0/0 = 0; infinite where other
        has a coefficient that should not be there.
        """
        gap = np.abs(self.value - np.asarray(other, np.longdouble))
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.max(np.where(gap == 0, 0, gap / self.mag), initial=0))
