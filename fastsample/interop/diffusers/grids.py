"""The times, noise levels and labels that a diffusers scheduler's config stands for, in float64.
Pure data: no torch, no diffusers.

A scheduler of diffusers 0.42 keeps its state on one of three scales:

    vp       x = alpha x0 + sigma eps, alpha² + sigma² = 1    DDIM, DDPM, DPMSolver*, UniPC, LCM
    sigma    x = x0 + sigma eps                               Euler, EulerAncestral, Heun
    flow     x = (1 - sigma) x0 + sigma eps                   FlowMatchEuler; use_flow_sigmas

A grid's variable is sigma on sigma and flow scale (see `flow`), and on vp the index t of the
table, -1 where there is no noise.

The functions give the grid [n+1] from noise to data on those scales, and the labels [n] that the
model is told at its first n points: the scheduler's own rule, with three differences. A label and
its level belong together, so a label keeps its fraction where diffusers rounds it (Karras) or cuts
it off (exponential, beta, flow). Where diffusers repeats a level, a step of length 0, the rule is
asked for one more point. One step starts at the noise end. (With compat="diffusers" FsScheduler
asks diffusers itself for grid and labels.)

Spacing rules: Lin et al. 2024 (arXiv:2305.08891, table 2), Karras et al. 2022 (2206.00364, eq. 5),
Lee et al. 2024 (2407.12173, beta), Luo et al. 2023 (2310.04378, distilled).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from ...grids import _rules as rules
from ...grids._checks import refuse_rising
from ...plan.given import bits, edged, integer, numbers
from ...plan.row import CAPS
from ...schedules import DiscreteVP

TERMINAL = 2.0**-24  # alphas_cumprod where a zero-terminal-SNR table has its 0
TOP = math.sqrt(2.0**24 - 1.0)  # sigma/alpha there
# times or levels closer than this are one point: float64 rounding of the conversions is 1e-13
SAME = 1e-9
MOST = CAPS["R"] - 1  # steps of a plan


@dataclass(frozen=True)
class Family:
    """How one diffusers class lays out its timesteps.

    scale   vp, sigma or flow, as above
    extra   the spacing is asked for n+1 points and the cleanest dropped
    whole   timesteps are whole numbers
    spaced  timestep_spacing is honoured (otherwise linspace)
    flow    which flow sigmas it has: "match" (FlowMatchEuler), "unipc", "dpm", or "" for none
    kept    the run ends at the lowest level, not at 0, without a word of the config's
    apart   no two levels of a flow are the same
    """

    scale: str = "vp"
    extra: bool = False
    whole: bool = True
    spaced: bool = True
    flow: str = ""
    kept: bool = False
    apart: bool = False


@dataclass(frozen=True)
class Points:
    """grid [n+1] in the scale's own variable, noise to data; labels [n]; schedule: the table they
    stand on; whole: the labels are.

    legs [T, 2]: where each timestep of the table stands, and where a step from it ends, if that is
    not the next point. asked: the label of every call, where a step asks between two points. past:
    what stands in the list of timesteps after the labels, at which no step is made.
    """

    grid: np.ndarray
    labels: np.ndarray
    schedule: DiscreteVP | None = None
    whole: bool = False
    legs: np.ndarray | None = None
    asked: np.ndarray | None = None
    past: tuple[float, ...] = ()


# beta_schedule and the table of `fastsample.schedules` that it is
TABLES = {
    **{kind: kind for kind in ("linear", "scaled_linear", "sigmoid", "exp", "laplace")},
    "squaredcos_cap_v2": "cosine",
}


def noise_schedule(config: dict, finite: bool = False) -> DiscreteVP:
    """The table of alphas_cumprod that beta_schedule, beta_start, beta_end and num_train_timesteps,
    or trained_betas, name.

    With rescale_betas_zero_snr its last entry is 0; finite, for the sigma scale: 2^-24 there as
    diffusers has it (sigma/alpha = 4096), or less where the entry before is less already, as it is
    with linear betas (`own_levels` has diffusers' there too).
    """
    kind, size = config["beta_schedule"], config["num_train_timesteps"]
    low, high = config.get("beta_start"), config.get("beta_end")
    if config.get("trained_betas") is not None:
        betas = numbers("FsScheduler: trained_betas", config["trained_betas"])
        # a last 1: no signal is left
        inside = (betas > 0.0) & (betas < 1.0) if betas.ndim == 1 else np.zeros(1, dtype=bool)
        if not (inside[:-1].all() and (inside[-1:] | (betas[-1:] == 1.0)).all()):
            raise ValueError(
                f"FsScheduler: trained_betas has shape {list(betas.shape)}; one axis of numbers "
                "inside (0, 1), the last of which may be 1, is accepted"
            )
        table = DiscreteVP(np.cumprod(1.0 - betas))
    elif kind in TABLES:
        ends = (low, high) if kind in ("linear", "scaled_linear", "sigmoid") else ()
        table = getattr(DiscreteVP, TABLES[kind])(size, *ends)
    else:
        raise ValueError(
            f"FsScheduler: beta_schedule = {kind!r}; {', '.join(TABLES)} or trained_betas is "
            "accepted"
        )
    if config.get("snr_shift_scale", 1.0) != 1.0:  # CogVideoX's
        table = table.shifted(-math.log(config["snr_shift_scale"]))
    if not config.get("rescale_betas_zero_snr"):
        return table
    table = table.zero_terminal_snr()
    if not finite:
        return table
    kept = table.alphas_cumprod[:-1]
    last = TERMINAL if kept[-1] > TERMINAL else kept[-1] ** 2 / kept[-2]
    return DiscreteVP(np.append(kept, last))


def points(
    family: Family,
    config: dict,
    schedule: DiscreteVP,
    steps: int | None,
    *,
    timesteps=None,
    sigmas=None,
) -> Points:
    """vp and sigma: the grid of `steps` steps, or of these timesteps [n], or of these sigmas/alphas
    [n+1], their end included.
    """
    steps = count(
        steps,
        None if timesteps is None else len(timesteps),
        None if sigmas is None else len(sigmas) - 1,
    )
    converted = next((key for key in CONVERSIONS if config.get(key)), None)
    if timesteps is not None and converted:
        raise ValueError(
            f"FsScheduler.set_timesteps: timesteps were given beside {converted}; one of the two "
            "is accepted"
        )
    if sigmas is not None:
        levels = falling("sigmas", sigmas, math.inf)
        told = indices(schedule, levels)
        grid, labels = levels if family.scale == "sigma" else told, told[:-1]
    else:
        end = _end(family, config, schedule, converted)
        times = None if timesteps is None else falling("timesteps", timesteps, schedule.t_max)
        first, labels = _first(family, config, schedule, steps, times, converted)
        if first[-1] <= end + SAME and times is None:
            # a step of length 0: one point more, and the last is the end
            more = _first(family, config, schedule, steps + 1, times, converted)
            first, labels = (values[:-1] for values in more)
        grid = np.append(first, end)
    labels = np.maximum(labels, 0.0)
    if told_log(config):
        labels = 0.25 * np.log(grid[:-1])
    return checked(grid, labels)


def told_log(config: dict) -> bool:
    """Is the model told 0.25 log(sigma/alpha) and no index of the table?"""
    continuous = config.get("timestep_type") == "continuous"
    return "sigma_data" in config or (continuous and config["prediction_type"] == "v_prediction")


def distilled_points(
    config: dict, steps: int | None, timesteps=None, original_steps: int | None = None, end=-1.0
) -> Points:
    """LCM and TCD: `steps` of the o timesteps T/o - 1, 2T/o - 1, .. of its distillation, evenly
    from the noisiest, or these; then `end`: -1, no noise, or 0, TCD's, to which original_steps are
    every timestep.
    """
    size = config["num_train_timesteps"]
    original = original_steps or config["original_inference_steps"]
    if timesteps is not None:
        times = falling("timesteps", timesteps, size - 1.0)
        count(steps, len(times))
        return checked(np.append(times, end), times)
    steps = count(steps)
    if not steps <= original <= size:
        raise ValueError(
            f"FsScheduler.set_timesteps: {steps} steps of {original} original ones of {size}; "
            f"steps <= original <= {size} is accepted"
        )
    original = size if end == 0.0 and original_steps else original
    taught = np.arange(original, 0, -1) * (size // original) - 1.0
    times = taught[np.floor(np.linspace(0, original, num=steps, endpoint=False)).astype(int)]
    return checked(np.append(times, end), times)


# -- conversions: (lowest level, highest level, n) -> n falling levels -----------------------------
CONVERSIONS = {
    "use_karras_sigmas": rules.karras,
    "use_lu_lambdas": rules.exponential,
    "use_exponential_sigmas": rules.exponential,
    "use_beta_sigmas": rules.beta,
}


# -- inside ----------------------------------------------------------------------------------------
def _first(
    family: Family,
    config: dict,
    schedule: DiscreteVP,
    n: int,
    times: np.ndarray | None,
    converted: str | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The n points before the end, and their labels with their fraction."""
    times = _spaced(family, config, schedule, n) if times is None else times
    if family.scale == "vp":
        rho = levels_of(schedule)
        if converted:
            times = indices(schedule, convert(converted, config, rho[0], rho[-1], n))
        return times, times
    # linear in sigma between the table's entries, as Euler's own levels are
    rho = own_levels(config, schedule)
    levels = np.interp(times, np.arange(len(rho)), rho)
    if not converted and (np.diff(levels) > 0.0).any():  # from the last entry to one beside it
        levels = np.interp(times, np.arange(len(rho)), levels_of(schedule))
    if config.get("interpolation_type") == "log_linear":
        levels = rules.exponential(rho[0], rho[-1], n + 1)
    if converted:
        levels = convert(converted, config, levels[-1], levels[0], n)
        times = indices(schedule, levels)
    return levels[:n], times


def _spaced(family: Family, config: dict, schedule: DiscreteVP, n: int) -> np.ndarray:
    """n timesteps under timestep_spacing, from the noise end."""
    size = config["num_train_timesteps"]
    if n > size:
        raise ValueError(
            f"FsScheduler.set_timesteps: {n} steps of {size} timesteps; at most {size} are accepted"
        )
    lowest = config.get("lambda_min_clipped", -math.inf)
    last = size - int((schedule.half_log_snr(np.arange(float(size))) < lowest).sum())
    kind = config.get("timestep_spacing", "linspace") if family.spaced else "linspace"
    if kind == "linspace":
        times = rules.linspace(last, n, family.extra)
    elif kind == "leading":
        times = rules.leading(last, n, family.extra, config.get("steps_offset", 0))
    elif kind == "trailing":
        times = rules.trailing(size, n, last)
        times = times[times > -1.0]
    else:
        raise ValueError(
            f"FsScheduler: timestep_spacing = {kind!r}; linspace, leading or trailing is accepted"
        )
    rounded = np.round(times + 1.0) - 1.0 if kind == "trailing" else np.round(times)
    # with more steps than whole timesteps in the range, the fractions are kept
    repeats = (np.diff(rounded) >= 0.0).any()
    return times if repeats or not (family.whole or kind == "trailing") else rounded


def convert(key: str, config: dict, low: float, high: float, n: int) -> np.ndarray:
    low = low if config.get("sigma_min") is None else config["sigma_min"]
    high = high if config.get("sigma_max") is None else config["sigma_max"]
    ends = low == 0.0 and key in ("use_karras_sigmas", "use_beta_sigmas")
    if not (low > 0.0 or ends) or not low < high < math.inf:
        raise ValueError(
            f"FsScheduler: {key}=True from sigma {high:g} to {low:g}; finite levels, 0 < lowest < "
            "highest, are accepted"
        )
    return CONVERSIONS[key](low, high, n)


def _end(family: Family, config: dict, schedule: DiscreteVP, converted: str | None) -> float:
    """The grid's last point: no noise, or the table's first entry."""
    kept = family.kept or config.get("final_sigmas_type", "zero") == "sigma_min"
    kept |= not config.get("set_alpha_to_one", True)
    kept |= config.get("interpolation_type") == "log_linear" and not converted
    if family.scale == "vp":
        return 0.0 if kept else schedule.t_zero
    return float(levels_of(schedule)[0]) if kept else 0.0


def levels_of(schedule: DiscreteVP) -> np.ndarray:
    """sigma/alpha of every entry of the table."""
    with np.errstate(over="ignore"):
        return np.exp(-schedule.half_log_snr(np.arange(schedule.t_max + 1.0)))


def own_levels(config: dict, schedule: DiscreteVP) -> np.ndarray:
    """Those that a class on sigma scale has, with a `finite` schedule: at the last entry of zero
    terminal SNR 4096, whatever the one before.
    """
    rho = levels_of(schedule)
    if config.get("rescale_betas_zero_snr"):
        rho[-1] = TOP
    return rho


def indices(schedule: DiscreteVP, levels: np.ndarray) -> np.ndarray:
    """Times of the table at these levels of sigma/alpha, log-linear between entries; whole where
    rounding alone makes the difference.
    """
    with np.errstate(divide="ignore"):
        top = np.exp(-schedule.half_log_snr(schedule.t_max))
        times = schedule.time(-np.log(np.minimum(levels, top)))
    whole = np.round(times)
    return np.where(np.abs(times - whole) < SAME, whole, times)


def listed(values, top: float) -> tuple | None:
    """A list of numbers as a key; one in a type of 16 bits with its edge, top, as `labelled`.
    ValueError for what is no list, or a list of lists.
    """
    found = values
    if hasattr(values, "tolist"):
        rounded = bits(values) is not None and values.ndim == 1
        found = labelled(values, top).tolist() if rounded else values.tolist()
    flat = isinstance(found, Iterable) and not isinstance(found, str)
    found = tuple(found) if flat else found
    if found is not None and not (flat and all(isinstance(v, Hashable) for v in found)):
        raise ValueError(
            f"FsScheduler.set_timesteps: timesteps or sigmas = {values!r:.60}; one list of numbers "
            "is accepted"
        )
    return found


def labelled(timesteps, top: float) -> np.ndarray:
    """Timesteps as float64 [n], the last of all, top, in place of what its type's rounding put
    beyond it: 999 is 1000 in bfloat16.
    """
    kept, times = bits(timesteps), numbers("FsScheduler: timesteps", timesteps).ravel()
    near = 0.0 if kept is None else top * 2.0**-kept
    return edged(np.where((times > top) & (times - top <= near), top, times), 0.0, top)


def count(*given: int | None) -> int:
    """The number of steps that all the given ones agree on."""
    counts = {integer(n) for n in given if n is not None}
    if any(n is None or n < 1 for n in counts):
        said = next(n for n in given if n is not None and (integer(n) or 0) < 1)
        raise ValueError(
            f"FsScheduler.set_timesteps: {said!r:.60} steps; a whole number from 1 up is accepted"
        )
    if max(counts, default=0) > MOST:
        raise ValueError(
            f"FsScheduler.set_timesteps: {max(counts)} steps; at most {MOST} are accepted"
        )
    if len(counts) != 1:
        raise ValueError(
            f"FsScheduler.set_timesteps: steps {sorted(counts) or None} were asked; one number of "
            "steps, or one list, is accepted"
        )
    return counts.pop()


def falling(what: str, values, top: float, repeats: bool = False) -> np.ndarray:
    """values as float64 [n], from `top` down to 0, strictly falling, or never rising (repeats)."""
    values = edged(numbers(f"FsScheduler.set_timesteps: {what}", values), 0.0)
    listed = values.ndim == 1 and values.size > 0 and bool((values >= 0.0).all())
    if listed and values[-1] <= top * 1.001:
        refuse_rising(f"FsScheduler.set_timesteps: {what}", values)
    falls = np.diff(values) <= 0.0 if repeats else np.diff(values) < 0.0
    if not listed or not values[0] <= top * 1.001 or not falls.all():
        kind = "numbers that never rise" if repeats else "strictly falling numbers"
        raise ValueError(
            f"FsScheduler.set_timesteps: {what} {values.tolist()!r:.60}; {kind} from {top:g} down "
            "to 0 are accepted"
        )
    return np.minimum(values, top)


def checked(grid: np.ndarray, labels: np.ndarray) -> Points:
    falls = np.diff(grid) < 0.0
    if not falls.all():
        at = int(np.argmin(falls))
        raise ValueError(
            f"FsScheduler.set_timesteps: point {at + 1} is {grid[at + 1]:g} after {grid[at]:g}; a "
            "falling grid is accepted"
        )
    return Points(grid, labels)
