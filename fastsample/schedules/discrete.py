"""DiscreteVP: a table of noise levels, as DDPM and Stable Diffusion are trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..plan.given import between, edged, integer, reals
from ._schedule import Schedule, moved, preserving

# the constructors that a recipe may name
KINDS = ("linear", "scaled_linear", "cosine", "exp", "sigmoid", "laplace")


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
        u = np.arange(recipe["steps"] + 1) / recipe["steps"]
        offset = recipe["offset"]
        return cls._of_g(np.cos((u + offset) / (1.0 + offset) * (math.pi / 2)) ** 2, recipe)

    @classmethod
    def exp(cls, steps: int = 1000, beta_max: float = 0.999) -> DiscreteVP:
        """The same with g(u) = e^{-12 u}: every beta is 1 - e^{-12/steps}. The name and the numbers
        are diffusers' (beta_schedule="exp").
        """
        recipe = _recipe("exp", steps, beta_max=beta_max)
        return cls._of_g(np.exp(-12.0 * np.arange(recipe["steps"] + 1) / recipe["steps"]), recipe)

    @classmethod
    def laplace(cls, steps: int = 1000, beta_max: float = 0.999) -> DiscreteVP:
        """The same with g(u)² = snr/(1 + snr),
        ln snr = -½ sign(½ - u) ln(1 - 2|½ - u| + 1e-6): log-SNR in the quantiles of a Laplace
        distribution (Hang et al. 2024, arXiv:2407.03297; the ½ and the root are diffusers').
        """
        recipe = _recipe("laplace", steps, beta_max=beta_max)
        u = np.arange(recipe["steps"] + 1) / recipe["steps"]
        log_snr = -0.5 * np.copysign(1.0, 0.5 - u) * np.log(1.0 - 2.0 * np.abs(0.5 - u) + 1e-6)
        return cls._of_g(1.0 / np.sqrt(1.0 + np.exp(-log_snr)), recipe)

    @classmethod
    def sigmoid(
        cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> DiscreteVP:
        """beta = beta_start + (beta_end - beta_start)/(1 + e^{-v}), v = linspace(-6, 6, steps)
        (GeoDiff: Xu et al. 2022, arXiv:2203.02923).
        """
        recipe = _recipe("sigmoid", steps, beta_start=beta_start, beta_end=beta_end)
        _, steps, first, last = recipe.values()
        betas = first + (last - first) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps)))
        return cls(np.cumprod(1.0 - betas), recipe)

    @classmethod
    def _of_g(cls, g: np.ndarray, recipe: dict) -> DiscreteVP:
        """beta_i = min(1 - g_{i+1}/g_i, beta_max)."""
        return cls(np.cumprod(np.maximum(g[1:] / g[:-1], 1.0 - recipe["beta_max"])), recipe)

    def zero_terminal_snr(self) -> DiscreteVP:
        """The same table with sqrt(alphas_cumprod) moved affinely: its first entry stays and its
        last is 0 (Lin et al. 2024, Alg. 1).
        """
        root = np.sqrt(self.alphas_cumprod)
        recipe = None if self.recipe is None else {**self.recipe, "zero_terminal_snr": True}
        return DiscreteVP(((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2, recipe)

    def shifted(self, log_snr: float) -> DiscreteVP:
        move, table, recipe = moved(self, log_snr), self.alphas_cumprod, None
        if self.recipe is not None and "zero_terminal_snr" not in self.recipe:
            recipe = {**self.recipe, "log_snr": self.recipe.get("log_snr", 0.0) + move}
        return DiscreteVP(table / (table + (1.0 - table) * math.exp(-move)), recipe)

    def half_log_snr(self, t):
        with np.errstate(divide="ignore"):
            return np.asarray(self._level(self._inside(t, "half_log_snr")))[()]

    @cached_property
    def _entries(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the finite entries, and their half_log_snr falling to rising: -lambda."""
        return np.arange(len(self._table), dtype=np.float64), -self._table

    def _level(self, t):
        level = np.interp(t, self._entries[0], self._table)
        if (below := t < 0.0).any():
            level = np.where(below, self._table[0] - np.log1p(np.minimum(t, 0.0)), level)
        if (above := t > self.t_finite).any():
            end = self._table[-1] + np.log(np.maximum(self.t_max - t, 0.0))
            level = np.where(above, end, level)
        return level

    def _point(self, t):
        level = self._level(t)
        return *preserving(level), level

    def _time(self, level):
        first, last = self._table[0], self._table[-1]
        numbers, rising = self._entries
        t = np.interp(-level, rising, numbers)
        if (beyond := level > first).any():
            t = np.where(beyond, np.expm1(np.minimum(first - level, 0.0)), t)
        if self.t_finite < self.t_max:
            return np.where(level < last, self.t_max - np.exp(np.minimum(level - last, 0.0)), t)
        if (level < last).any() and (edged(level, last) < last).any():
            raise ValueError(
                f"DiscreteVP.time: half_log_snr = {level.min():g}; values from {last:g}, the "
                "table's last, are accepted"
            )
        return t

    def to_json(self) -> dict:
        recipe = self.recipe or {"alphas_cumprod": self.alphas_cumprod.tolist()}
        return {"name": "DiscreteVP", **recipe}

    @classmethod
    def _of_words(cls, words: dict) -> DiscreteVP:
        kind, zero = words.pop("kind", None), words.pop("zero_terminal_snr", False)
        move = words.pop("log_snr", 0.0)
        if kind not in (None, *KINDS) or "recipe" in words or not isinstance(zero, bool):
            said = {"kind": kind, "zero_terminal_snr": zero, **words}
            raise ValueError(
                f"schedules.from_json: {said!r:.160}; a kind, zero_terminal_snr or table that "
                "to_json writes is accepted"
            )
        made = (cls if kind is None else getattr(cls, kind))(**words)
        made = made.shifted(move) if move else made
        return made.zero_terminal_snr() if zero else made

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
