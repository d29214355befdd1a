"""Noise schedules: x_t = alpha(t)·x0 + sigma(t)·eps, eps ~ N(0, I), and the half log-SNR
lambda = ln(alpha/sigma).

Every schedule has
    alpha(t), sigma(t), half_log_snr(t)   float64, any shape; half_log_snr is +inf where sigma = 0
                                          and -inf where alpha = 0, both exact
    time(half_log_snr)                    the inverse
    t_max                                 noise end (larger t = noisier)
    t_min                                 smallest time with sigma > 0 that grids use
    t_zero                                the time at which sigma = 0 exactly (below t_min)
    t_finite                              largest time with alpha > 0 that grids spaced in
                                          half_log_snr use (t_max unless alpha(t_max) = 0)
    label(t)                              the noise level a network is usually told: t itself,
                                          sigma for Flow
Times are numbers and lists of Python, NumPy or torch; what rounding alone puts outside the range
(1.57080 for pi/2) is its edge, what is further out a ValueError. Floor 0: NumPy only.

Sources: Song et al. 2021 (arXiv:2011.13456, VP and VE), Ho et al. 2020 (2006.11239, linear),
Rombach et al. 2022 (2112.10752, scaled linear), Nichol & Dhariwal 2021 (2102.09672, eq. 17,
cosine), Karras et al. 2022 (2206.00364, EDM), Liu et al. 2023 (2209.03003, flow), Esser et al. 2024
(2403.03206, shift), Lu & Song 2025 (2410.11081, TrigFlow), Lin et al. 2024 (2305.08891, Alg. 1,
zero terminal SNR).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field

import numpy as np

from .plan.given import between, edged, integer, numbers, reals
from .plan.note import load_note


def _own(schedule: Schedule, name: str, low: float = 0.0, high: float = math.inf) -> float:
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

    def alpha(self, t):
        return self.levels_at(t, "alpha")[0][()]

    def sigma(self, t):
        return self.levels_at(t, "sigma")[1][()]

    def half_log_snr(self, t):
        return self.levels_at(t, "half_log_snr")[2][()]

    def label(self, t):
        return self._inside(t, "label")[()]

    def time(self, half_log_snr):
        level = numbers(f"{type(self).__name__}.time: half_log_snr", half_log_snr)
        with np.errstate(over="ignore", divide="ignore"):
            return np.asarray(self._time(level))[()]

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

    def levels_at(self, t, what: str = "levels_at") -> tuple[np.ndarray, ...]:
        """(alpha, sigma, half_log_snr); what: the method that a refused time is said by."""
        t = self._inside(t, what)
        with np.errstate(over="ignore", divide="ignore"):
            return tuple(map(np.asarray, self._point(t)))

    def to_json(self) -> dict:
        """Name and parameters, JSON-able; from_json gives an equal schedule back."""
        own = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else vars(self)
        return {"name": type(self).__name__, **own}

    @staticmethod
    def from_json(data) -> Schedule:
        """The schedule that to_json wrote: a dict, or its JSON text, read strictly. Anything else
        is a ValueError.
        """
        words = data
        if isinstance(data, str):
            words = load_note(data.encode("utf-8", "surrogatepass"), "schedules.from_json")
        known = {made.__name__: made for made in _below(Schedule)} | SCHEDULES
        if not isinstance(words, dict) or words.get("name") not in list(known):
            raise ValueError(
                f"schedules.from_json: {words!r:.80}; a dict whose name is one of "
                f"{', '.join(known)} is accepted"
            )
        words = dict(words)
        make, zero = known[words.pop("name")], False
        if make is DiscreteVP:
            kind, zero = words.pop("kind", None), words.pop("zero_terminal_snr", False)
            told = kind in (None, "linear", "scaled_linear", "cosine") and "recipe" not in words
            if not told or not isinstance(zero, bool):
                raise ValueError(
                    f"schedules.from_json: {data!r:.160}; a kind, zero_terminal_snr or table that "
                    "to_json writes is accepted"
                )
            make = DiscreteVP if kind is None else getattr(DiscreteVP, kind)
        try:
            schedule = make(**words)
        except TypeError as error:
            raise ValueError(
                f"schedules.from_json: {error!s:.120}; the parameters that to_json writes are "
                "accepted"
            ) from None
        return schedule.zero_terminal_snr() if zero else schedule


@dataclass(frozen=True)
class VP(Schedule):
    """Variance preserving: alpha = e^{-L}, sigma = sqrt(1 - e^{-2L}),
    L(t) = (beta_max - beta_min) t²/4 + beta_min t/2, t in [0, 1].
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max = 1.0

    def __post_init__(self):
        low = _own(self, "beta_min")
        _own(self, "beta_max", low)
        _own(self, "t_min", 0.0, 1.0)

    def _point(self, t):
        decay = 0.25 * t * t * (self.beta_max - self.beta_min) + 0.5 * t * self.beta_min
        level = -0.5 * np.log(np.expm1(2.0 * decay))
        return np.exp(-decay), np.sqrt(-np.expm1(-2.0 * decay)), level

    def _time(self, level):
        decay = 0.5 * np.logaddexp(0.0, -2.0 * level)
        root = np.sqrt(self.beta_min**2 + 4.0 * (self.beta_max - self.beta_min) * decay)
        return 4.0 * decay / (self.beta_min + root)


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t, t in [0, 1];
    sigma = 0 at the special time -1.

    Between -1 and 0 sigma = sigma_min (1 + t): levels under sigma_min, which the usual grids do not
    use.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min, t_max, t_zero = 0.0, 1.0, -1.0

    def __post_init__(self):
        _own(self, "sigma_max", _own(self, "sigma_min"))

    def _point(self, t):
        span = self.sigma_max / self.sigma_min
        # ratio: ln(sigma/sigma_min)
        ratio = np.where(t < 0.0, np.log1p(np.minimum(t, 0.0)), t * math.log(span))
        sigma = self.sigma_min * np.where(t < 0.0, 1.0 + t, span ** np.maximum(t, 0.0))
        return np.ones_like(t), sigma, -math.log(self.sigma_min) - ratio

    def _time(self, level):
        ratio = -level - math.log(self.sigma_min)
        below = np.expm1(np.minimum(ratio, 0.0))
        return np.where(ratio < 0.0, below, ratio / math.log(self.sigma_max / self.sigma_min))


@dataclass(frozen=True)
class EDM(Schedule):
    """Karras et al. 2022: alpha = 1, sigma = t >= 0. sigma_data is the standard deviation of x0,
    used by prediction "edm".
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    t_top = sys.float_info.max  # churn and hand-made lists go above sigma_max
    t_min = property(lambda self: self.sigma_min)
    t_max = property(lambda self: self.sigma_max)

    def __post_init__(self):
        _own(self, "sigma_max", _own(self, "sigma_min"))
        _own(self, "sigma_data")

    def _point(self, t):
        return np.ones_like(t), t, -np.log(t)

    def _time(self, level):
        return np.exp(-level)


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: sigma = shift·t / (1 + (shift-1) t), alpha = 1 - sigma; t in [0, 1] is the
    time before the shift.

    half_log_snr = ln((1-t)/t) - ln(shift): the shift moves the log-SNR by a constant. alpha = 0 at
    t = 1 and sigma = 0 at t = 0.
    """

    shift: float = 1.0
    t_min: float = 1e-3
    t_max = 1.0
    t_finite = property(lambda self: 1.0 - self.t_min)

    def __post_init__(self):
        _own(self, "shift")
        _own(self, "t_min", 0.0, 0.5)

    def _point(self, t):
        scale = 1.0 + (self.shift - 1.0) * t  # alpha is not 1 - sigma, which cancels near t = 1
        level = np.log1p(-t) - np.log(t) - math.log(self.shift)
        return (1.0 - t) / scale, self.shift * t / scale, level

    def _time(self, level):
        return 1.0 / (1.0 + self.shift * np.exp(level))

    def label(self, t):
        return self.sigma(t)


@dataclass(frozen=True)
class TrigFlow(Schedule):
    """alpha = cos t, sigma = sigma_data·sin t, t in [0, pi/2]; sigma_data is the standard deviation
    of x0. alpha = 0 exactly at pi/2.
    """

    sigma_data: float = 1.0
    t_min: float = 2e-3
    t_max = math.pi / 2
    t_finite = property(lambda self: self.t_max - self.t_min)

    def __post_init__(self):
        _own(self, "sigma_data")
        _own(self, "t_min", 0.0, math.pi / 4)

    def _point(self, t):
        end = t == self.t_max  # the cosine of the float nearest pi/2 is 6e-17
        level = np.where(end, -np.inf, -np.log(np.tan(t)) - math.log(self.sigma_data))
        return np.where(end, 0.0, np.cos(t)), self.sigma_data * np.sin(t), level

    def _time(self, level):
        return np.arctan(np.exp(-level) / self.sigma_data)


@dataclass(frozen=True, eq=False)
class DiscreteVP(Schedule):
    """A table of T noise levels: alpha = sqrt(alphas_cumprod[t]),
    sigma = sqrt(1 - alphas_cumprod[t]), t = 0..T-1; sigma = 0 at t = -1.

    alphas_cumprod [T]: strictly decreasing inside (0, 1); the last may be 0 (zero terminal SNR). At
    a fractional t half_log_snr is linear in t (log-linear sigma/alpha); in the two intervals with
    an infinite end, -1..0 and the last of a zero-terminal-SNR table, sigma/alpha and alpha/sigma
    are linear in t instead. recipe names the constructor and its arguments, so that to_json and
    repr stay short.
    """

    alphas_cumprod: np.ndarray = field(repr=False)
    recipe: dict | None = None
    t_min, t_zero = 0.0, -1.0
    t_max = property(lambda self: float(len(self.alphas_cumprod) - 1))
    # _table: half_log_snr at t = 0, 1, .., t_finite
    t_finite = property(lambda self: float(len(self._table) - 1))

    def __post_init__(self):
        table = reals(self.alphas_cumprod)
        if table is None:
            found = f"{self.alphas_cumprod!r:.60}"
            raise ValueError(f"DiscreteVP: alphas_cumprod = {found}; a list of numbers is accepted")
        if table.ndim != 1 or not 1 <= len(table) <= 100_000:
            raise ValueError(
                f"DiscreteVP: alphas_cumprod has shape {list(table.shape)}; one axis of 1 to "
                "100000 entries is accepted"
            )
        sound = (table >= 0.0) & (np.diff(table, prepend=1.0) < 0.0)
        if not sound.all():
            at = int(np.argmin(sound))
            found = f"alphas_cumprod[{at}] = {table[at]:g} after {table[:at][-1:]}"
            raise ValueError(
                f"DiscreteVP: {found}; decreasing values inside (0, 1), the last may be 0, are "
                "accepted"
            )
        table.setflags(write=False)
        finite = table[: len(table) - (table[-1] == 0.0)]
        object.__setattr__(self, "alphas_cumprod", table)
        object.__setattr__(self, "_table", 0.5 * (np.log(finite) - np.log1p(-finite)))

    @classmethod
    def linear(
        cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> DiscreteVP:
        """beta = linspace(beta_start, beta_end, steps), alphas_cumprod = cumprod(1 - beta)
        (Ho et al. 2020).
        """
        recipe = _recipe("linear", steps, beta_start=beta_start, beta_end=beta_end)
        _, steps, first, last = recipe.values()
        return cls(np.cumprod(1.0 - np.linspace(first, last, steps)), recipe)

    @classmethod
    def scaled_linear(
        cls, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> DiscreteVP:
        """sqrt(beta) = linspace(sqrt(beta_start), sqrt(beta_end), steps) (Rombach et al. 2022;
        Stable Diffusion).
        """
        recipe = _recipe("scaled_linear", steps, beta_start=beta_start, beta_end=beta_end)
        _, steps, first, last = recipe.values()
        roots = np.linspace(math.sqrt(first), math.sqrt(last), steps)
        return cls(np.cumprod(1.0 - roots**2), recipe)

    @classmethod
    def cosine(
        cls, steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999
    ) -> DiscreteVP:
        """beta_i = min(1 - g((i+1)/steps)/g(i/steps), beta_max),
        g(u) = cos²((u + offset)/(1 + offset)·pi/2) (Nichol & Dhariwal 2021).
        """
        recipe = _recipe("cosine", steps, offset=offset, beta_max=beta_max)
        _, steps, offset, beta_max = recipe.values()
        g = np.cos((np.arange(steps + 1) / steps + offset) / (1.0 + offset) * (math.pi / 2)) ** 2
        return cls(np.cumprod(np.maximum(g[1:] / g[:-1], 1.0 - beta_max)), recipe)

    def zero_terminal_snr(self) -> DiscreteVP:
        """The same table with sqrt(alphas_cumprod) moved affinely: its first entry stays and its
        last is 0 (Lin et al. 2024, Alg. 1).
        """
        root = np.sqrt(self.alphas_cumprod)
        recipe = None if self.recipe is None else {**self.recipe, "zero_terminal_snr": True}
        return DiscreteVP(((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2, recipe)

    def _point(self, t):
        level = np.interp(t, np.arange(len(self._table)), self._table)
        level = np.where(t < 0.0, self._table[0] - np.log1p(np.minimum(t, 0.0)), level)
        end = self._table[-1] + np.log(np.maximum(self.t_max - t, 0.0))
        level = np.where(t > self.t_finite, end, level)
        alpha, sigma = (1.0 / np.sqrt(1.0 + np.exp(k * level)) for k in (-2.0, 2.0))
        return alpha, sigma, level

    def _time(self, level):
        first, last = self._table[0], self._table[-1]
        t = np.interp(-level, -self._table, np.arange(len(self._table)))
        t = np.where(level > first, np.expm1(np.minimum(first - level, 0.0)), t)
        if self.t_finite < self.t_max:
            return np.where(level < last, self.t_max - np.exp(np.minimum(level - last, 0.0)), t)
        if (edged(level, last) < last).any():
            raise ValueError(
                f"DiscreteVP.time: half_log_snr = {level.min():g}; values from {last:g}, the "
                "table's last, are accepted"
            )
        return t

    def to_json(self) -> dict:
        recipe = self.recipe or {"alphas_cumprod": self.alphas_cumprod.tolist()}
        return {"name": "DiscreteVP", **recipe}

    def __eq__(self, other) -> bool:
        same = isinstance(other, DiscreteVP)
        return same and np.array_equal(self.alphas_cumprod, other.alphas_cumprod)

    def __hash__(self) -> int:
        return hash(self.alphas_cumprod.tobytes())


def _recipe(kind: str, steps, **values) -> dict:
    count = integer(steps)
    if count is None or not 1 <= count <= 100_000:
        raise ValueError(
            f"DiscreteVP.{kind}: steps = {steps!r}; an integer from 1 to 100000 is accepted"
        )
    words = {name: between(f"DiscreteVP.{kind}: {name}", v, 0.0, 1.0) for name, v in values.items()}
    return {"kind": kind, "steps": count, **words}


SCHEDULES = {cls.__name__: cls for cls in (VP, DiscreteVP, VE, EDM, Flow, TrigFlow)}
from_json = Schedule.from_json
