"""The axis of a drawing: where a number stands between the ends, and which have a label."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

HUGE = 1e300  # numbers from here on are drawn like infinity
ROOM = 4  # percent left free at both ends of an axis
APART = 9  # percent between two labels at least


@dataclass(frozen=True)
class Axis:
    """Places in percent of numbers from low to high, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], log: bool = False) -> Axis:
        """An axis that holds every value of moderate size, on a logarithmic one if positive."""
        held = [v for v in values if abs(v) < HUGE and (v > 1 / HUGE or not log)] or [1.0]
        low, high = min(held), max(held)
        if high - low <= 1e-9 * max(abs(low), abs(high)):  # one point: room on both sides
            room = max(1.0, abs(low))
            return cls(low / 2, high * 2, log) if log else cls(low - room, high + room)
        return cls(low, high, log)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def at(self, value: float) -> float:
        """Percent from the low end; beyond an end, what lies there has its edge."""
        if not self.holds(value):
            return 100.0 if value > self.high else 0.0
        of = math.log if self.log else float
        share = (of(value) - of(self.low)) / (of(self.high) - of(self.low))
        return ROOM + share * (100 - 2 * ROOM)

    def ticks(self) -> list[float]:
        """Round numbers on the axis: decades, and 2 and 5 between them on a short one."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            return list(
                filter(self.holds, (s * 10.0**k for k in range(first, last + 1) for s in steps))
            )
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [k * step for k in range(first, last + 1)]

    def thinned(self, values: Iterable[float]) -> list[float]:
        """The values on the axis, from the high end down, those left out that are too near."""
        kept: list[float] = []
        for value in sorted(filter(self.holds, values), reverse=True):
            if not kept or self.at(kept[-1]) - self.at(value) >= APART:
                kept.append(value)
        return kept
