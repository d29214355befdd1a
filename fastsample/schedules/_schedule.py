"""What every schedule shares: range checks, the JSON form, the shift of its log-SNR."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..plan.given import between, edged, numbers, real, reals
from ..plan.note import load_note

# the schedules a note may name, by class name; the package's front fills it
SCHEDULES: dict[str, type[Schedule]] = {}


def own(schedule: Schedule, name: str, low: float = 0.0, high: float = math.inf) -> float:
    """A parameter of the schedule, strictly between low and high, kept as a plain number."""
    value = getattr(schedule, name)
    number = between(f"{type(schedule).__name__}: {name}", value, low, high)
    if type(value) not in (int, float):
        object.__setattr__(schedule, name, number)
    return number


def _below(made: type) -> list[type]:
    """The subclasses of a class, and theirs."""
    return [each for sub in made.__subclasses__() for each in (sub, *_below(sub))]


class Schedule:
    """What every schedule shares: range checks, the JSON form. A subclass gives t_max and t_min,
    the map _point(t) -> (alpha, sigma, lambda) and the inverse _time(lambda) -> t, float64 arrays
    of any shape. Where its attributes are the arguments it is made with, as a dataclass's are, a
    plan of it can be made again from its note.
    """

    t_zero = 0.0
    t_top = property(lambda self: self.t_max)  # largest accepted time
    t_finite = property(lambda self: self.t_max)

    def alpha(self, t: Any) -> Any:
        return self.levels_at(t, "alpha")[0][()]

    def sigma(self, t: Any) -> Any:
        return self.levels_at(t, "sigma")[1][()]

    def half_log_snr(self, t: Any) -> Any:
        return self.levels_at(t, "half_log_snr")[2][()]

    def label(self, t: Any) -> Any:
        return self._inside(t, "label")[()]

    def shifted(self, log_snr: float) -> Schedule:
        """This schedule with `log_snr` added to ln(alpha²/sigma²) at every time: noisier where it
        is negative. How alpha and sigma share the level stays (alpha² + sigma² = 1 on VP,
        alpha + sigma = 1 on Flow, alpha = 1 on EDM, whose ends move as its time is sigma itself).

        For a network trained so, which is told the time as before; `grids.shifted` moves the times
        of a grid along one schedule instead, for a network that is told its level. On Flow both are
        one. Hoogeboom et al. 2023, arXiv:2301.11093. A shift s of Flow is log_snr = -2 ln s, an SNR
        divided by s (CogVideoX's snr_shift_scale) -ln s, Stable Cascade's shift -2 ln(shift).
        """
        return Shifted(self, log_snr)

    def time(self, half_log_snr: Any) -> Any:
        level = numbers(f"{type(self).__name__}.time: half_log_snr", half_log_snr)
        with np.errstate(over="ignore", divide="ignore"):
            return np.asarray(self._time(level))[()]

    def _levels(self, level) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma) where half_log_snr is this, in the schedule's range or not."""
        return self._point(self._time(level))[:2]

    def _inside(self, t, what: str) -> np.ndarray:
        """The times t as float64, all in the schedule's range."""
        low, high, found = self.t_zero, self.t_top, reals(t)
        if found is None or not ((found >= low) & (found <= high)).all():
            where = f"{type(self).__name__}.{what}: t"
            found = edged(numbers(where, t), low, high)
            out = found[(found < low) | (found > high)]
            if out.size:
                raise ValueError(f"{where} = {out[0]:g}; {low:g} <= t <= {high:g} is accepted")
        return found

    def levels_at(self, t: Any, what: str = "levels_at") -> tuple[np.ndarray, ...]:
        """(alpha, sigma, half_log_snr); what: the method that a refused time is said by."""
        t = self._inside(t, what)
        with np.errstate(over="ignore", divide="ignore"):
            return tuple(map(np.asarray, self._point(t)))

    def to_json(self) -> dict[str, Any]:
        """Name and parameters, JSON-able; from_json gives an equal schedule back."""
        own = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else vars(self)
        return {"name": type(self).__name__, **own}

    @staticmethod
    def from_json(data: Any) -> Schedule:
        """The schedule that to_json wrote: a dict, or its JSON text, read strictly. Anything else
        is a ValueError.
        """
        words = data
        if isinstance(data, str):
            words = load_note(data.encode("utf-8", "surrogatepass"), "schedules.from_json")
        others = {made.__name__: made for made in _below(Schedule)}
        known = SCHEDULES | others | SCHEDULES  # ours first, and none of theirs in its place
        if not isinstance(words, dict) or words.get("name") not in list(known):
            raise ValueError(
                f"schedules.from_json: {words!r:.80}; a dict whose name is one of "
                f"{', '.join(known)} is accepted"
            )
        words = dict(words)
        try:
            return known[words.pop("name")]._of_words(words)
        except TypeError as error:
            raise ValueError(
                f"schedules.from_json: {error!s:.120}; the parameters that to_json writes are "
                "accepted"
            ) from None

    @classmethod
    def _of_words(cls, words: dict) -> Schedule:
        """The schedule of these words of its JSON form, the name apart."""
        return cls(**words)


def moved(schedule: Schedule, log_snr: float) -> float:
    """The checked shift, by which a schedule's half_log_snr moves by half."""
    found = real(log_snr)
    if found is None or abs(found) > 100.0:
        raise ValueError(
            f"{type(schedule).__name__}.shifted: log_snr = {log_snr!r:.60}; a number from -100 to "
            "100 is accepted"
        )
    return found


@dataclass(frozen=True)
class Shifted(Schedule):
    """The schedule that `shifted` makes where its own kind cannot say it: base's times, limits and
    labels, with half_log_snr = base.half_log_snr(t) + log_snr/2.
    """

    base: Schedule
    log_snr: float
    t_min = property(lambda self: self.base.t_min)
    t_max = property(lambda self: self.base.t_max)
    t_zero = property(lambda self: self.base.t_zero)
    t_finite = property(lambda self: self.base.t_finite)
    sigma_data = property(lambda self: self.base.sigma_data)

    def __post_init__(self):
        object.__setattr__(self, "log_snr", moved(self.base, self.log_snr))

    def label(self, t):
        return self.base.label(t)

    def shifted(self, log_snr: float) -> Schedule:
        return self.base.shifted(self.log_snr + moved(self.base, log_snr))

    def _point(self, t):
        level = self.base._point(t)[2] + 0.5 * self.log_snr
        return *self.base._levels(level), level

    def _time(self, level):
        return self.base._time(level - 0.5 * self.log_snr)

    def to_json(self) -> dict:
        return {"name": "Shifted", "base": self.base.to_json(), "log_snr": self.log_snr}

    @classmethod
    def _of_words(cls, words: dict) -> Schedule:
        return cls(**words | {"base": Schedule.from_json(words.get("base"))})


def preserving(level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) with alpha² + sigma² = 1 and ln(alpha/sigma) = level."""
    return 1.0 / np.sqrt(1.0 + np.exp(-2.0 * level)), 1.0 / np.sqrt(1.0 + np.exp(2.0 * level))
