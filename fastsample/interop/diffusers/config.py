"""A config becomes a plan: its points, the model's words, the solver with its arguments. No torch,
no diffusers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...model import Model
from ...plan import Plan
from ...schedules import EDM, DiscreteVP, Flow
from . import scm, wuerstchen
from .ancestral import NAME as LTX
from .ancestral import told_levels
from .consistency import NAME as CM
from .edm import edm_model, edm_points, told, told_at
from .flow import flow_points
from .grids import (
    SAME,
    Points,
    distilled_points,
    indices,
    labelled,
    levels_of,
    noise_schedule,
    own_levels,
    points,
    told_log,
)
from .inverse import INVERSE, inverse_peer_points, inverse_points
from .ipndm import NAME as IPNDM
from .ipndm import ipndm_model, ipndm_peer_points, ipndm_points
from .makers import maker
from .matching import matching
from .plan import scale_of
from .pndm import STEP, repeats, with_repeats
from .scm import NAME as SCM
from .sources import COGVIDEOX, PREDICTIONS, UNBOUNDED, find, flow_of, scale
from .step_options import Told
from .table import Table
from .wuerstchen import NAME as WUERSTCHEN

STRIDED = (
    "DDIMScheduler",
    "PNDMScheduler",
    COGVIDEOX,
)  # step from t to t - T//n, not to their next timestep
# whose timesteps are those of a distillation, and where they end, whatever set_alpha_to_one says
DISTILLED = {"LCMScheduler": -1.0, "TCDScheduler": 0.0}
BETWEEN = ("KDPM2", "DPMSolverSDE")  # ask half-way between two points
MATCH = "FlowMatchEulerDiscreteScheduler"


def trained_levels(where: str, config: dict, timesteps) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) [n] that training timesteps stand for, a number or n; ValueError for one that
    the model was not trained at.
    """
    if where == "trig" and "scaler" in config:
        return wuerstchen.levels(config, labelled(timesteps, 1.0))
    if where == "trig" and "sigma_data" in config:
        return scm.levels(config, labelled(timesteps, np.pi / 2))
    if where == "trig":
        angles = labelled(timesteps, 1.0) * (np.pi / 2)
        return np.cos(angles), np.sin(angles)
    size = config["num_train_timesteps"]
    last = float(size if where == "flow" else size - 1)
    labels = labelled(timesteps, last)
    if where != "flow" and told_log(config):
        return np.ones_like(labels), told_at(config, labels)
    first = 0.0 if where == "flow" else -1.0  # one before the first: no noise
    outside = (labels < first) | (labels > last)
    if outside.any():
        raise ValueError(
            f"FsScheduler: timestep {labels[outside].flat[0]:.10g}; 0 to {last:g} is accepted"
        )
    if where == "flow":
        return 1.0 - labels / size, labels / size
    schedule = noise_schedule(config, finite=where == "sigma")
    alpha, sigma = schedule.alpha(labels), schedule.sigma(labels)
    if where == "vp":
        return alpha, sigma
    end = own_levels(config, schedule)[-1]
    return np.ones_like(alpha), np.where(labels == schedule.t_max, end, sigma / alpha)


def trained(source: str, config: dict, plan: Plan) -> Model:
    """The words of the model that a config is for, on the scale of the plan. A shift that is found
    for every image size is taken from the plan.
    """
    shift = (plan.note.get("schedule") or {}).get("shift")
    return words_of_model(source, config, scale_of(plan) == "sigma", shift)


def words_of_model(source: str, config: dict, on_sigma: bool, shift: float | None) -> Model:
    """The words of the model that a config is for, on sigma/alpha or VP, which are one schedule;
    shift: of a flow whose own is found anew for every image size.
    """
    if not config:
        raise ValueError(
            "FsScheduler.from_plan: like is a scheduler of a plan itself; the pipeline's own is "
            "accepted"
        )
    if source in (SCM, WUERSTCHEN):
        raise ValueError(
            f"FsScheduler: {source} tells its model times that no plan's words have; a plan "
            "without like=, in a loop of its own, is accepted"
        )
    if "sigma_data" in config:
        return edm_model(config)
    if source == IPNDM:
        return ipndm_model(np.array([1.0, 0.0]), np.array([2.0 / np.pi]))
    kind = PREDICTIONS[config["prediction_type"]] if find(source).predictions else "flow"
    if scale(source, config) == "flow":
        own = config.get("shift", config.get("flow_shift"))
        moves = config.get("use_dynamic_shifting") and shift is not None
        return Model(None, Flow(shift if moves else own), kind, time=config["num_train_timesteps"])
    table = noise_schedule(config, finite=on_sigma)
    if not on_sigma:
        return Model(None, table, kind)
    low, high = levels_of(table)[[0, -1]]
    index = lambda t: indices(table, t)
    return Model(None, EDM(float(low), float(high)), kind, time=index, input_scale="vp")


def layout(
    source: str, config: dict, steps, timesteps, sigmas, mu, original_steps, others=()
) -> Points:
    """Grid and labels by the config's rules in float64."""
    family, where = find(source).family, scale(source, config)
    if source == SCM:
        return scm.points(config, steps, timesteps, sigmas, dict(others))
    if source == WUERSTCHEN:
        return wuerstchen.points(config, steps, timesteps, sigmas)
    if "sigma_data" in config:
        return edm_points(config, steps, timesteps, sigmas)
    if source == IPNDM:
        return ipndm_points(config, steps, timesteps, sigmas)
    if source == LTX and (timesteps is not None or sigmas is not None):
        return told_levels(config, steps, timesteps, sigmas)
    if where == "flow":
        family = replace(family, flow=flow_of(source, config))
        return flow_points(family, config, steps, timesteps=timesteps, sigmas=sigmas, mu=mu)
    if source in DISTILLED:
        if sigmas is not None:
            raise ValueError(
                f"FsScheduler.set_timesteps: sigmas of {source}, which stands on timesteps of "
                "its own; timesteps=, or a number of steps, is accepted"
            )
        return replace(
            distilled_points(config, steps, timesteps, original_steps, DISTILLED[source]),
            schedule=noise_schedule(config),
            whole=True,
        )
    schedule = noise_schedule(config, finite=where == "sigma")
    if source in INVERSE:
        return inverse_points(source, config, schedule, steps, timesteps, sigmas)
    found = points(family, config, schedule, steps, timesteps=timesteps, sigmas=sigmas)
    if source == "PNDMScheduler":
        found = _pndm_points(found, bool(config["skip_prk_steps"]))
    if source.startswith(BETWEEN):
        found = replace(found, asked=_asked(source, found, schedule))
    whole = where == "vp" and bool((found.labels == np.round(found.labels)).all())
    return replace(found, schedule=schedule, whole=whole)


def peer_table(source: str, config: dict, peer) -> DiscreteVP | None:
    """The noise schedule that a diffusers scheduler has in float32, its levels in order and each
    once: with a last entry set to 2^-24 they may rise and repeat. None for a flow.
    """
    if scale(source, config) in ("flow", "trig") or "sigma_data" in config:
        return None
    table = np.sort(_alphas(config, peer))[::-1]
    falls = np.append(True, table[1:] < table[:-1])  # np.unique imports for a tenth of a second
    return DiscreteVP(table[falls & (table < 1.0)])


def peer_layout(
    source: str, config: dict, peer, schedule: DiscreteVP | None, standing: bool = False
) -> Points:
    """Levels and labels of `peer`, the class itself after its set_timesteps, or before it
    (standing); schedule: its `peer_table`.

    ValueError where no plan has them, which standing levels of zero terminal SNR have (`Table`).
    """
    own = {IPNDM: ipndm_peer_points, SCM: scm.peer_points, WUERSTCHEN: wuerstchen.peer_points}
    if source in own:
        return own[source](peer)
    if source in INVERSE:
        places = _places(config, peer, schedule)
        return inverse_peer_points(source, config, peer, schedule, places)
    return _falling_layout(source, config, peer, schedule, standing)


def is_blind(source: str, config: dict, at: Points) -> bool:
    """Does a model that predicts epsilon say nothing of the data at the first of these points?"""
    eps = source != "PNDMScheduler" and config.get("prediction_type") == "epsilon"
    return bool(
        eps
        and scale(source, config) == "vp"
        and at.schedule.t_finite < at.schedule.t_max == at.grid[0]
    )


def plan(
    source: str, config: dict, at: Points, *, first: int = 0, eta: Told = 0.0, compat: bool = False
) -> Plan:
    """The plan of a class with this config on these points, from grid point `first` on (the state
    already stands there).

    compat: as diffusers has it, half weight in the third-order term, the unclipped direction and
    the fixed stride of DDIM included.
    """
    grid, labels = at.grid[first:], at.labels[first:]
    if scale(source, config) == "vp":
        _check_begin(source, config, grid[0], labels[0], at.schedule)
    if source == MATCH:
        model = _model(source, config, grid, labels, None)
        words = {"stochastic": config["stochastic_sampling"], "inverted": config["invert_sigmas"]}
        made = matching(model, grid, labels, first=first, **words)
        return made.with_note(made_for=f"diffusers {source}")
    solver, words = maker(source, config, at, first, eta, compat)
    read = source not in UNBOUNDED
    if read and config.get("clip_sample") and not config.get("thresholding"):
        words["clip"] = float(config["clip_sample_range"])
    every = None if at.asked is None else at.asked[2 * first :]
    made = solver(_model(source, config, grid, labels, at.schedule, every), grid, **words)
    if compat and find(source).calls == 2:  # the second of each pair of rows
        answer = made.note["stored"] == "flow" or source == "DPMSolverSDEScheduler"
        k = 0.0 if answer else 1.0
        made = made.with_note(anchored=[(row, k) for row in range(2, made.rows - 1, 2)])
    return made.with_note(made_for=f"diffusers {source}")


# -- inside ----------------------------------------------------------------------------------------
def _falling_layout(
    source: str, config: dict, peer, schedule: DiscreteVP | None, standing: bool
) -> Points:
    """`peer_layout` of a class that runs from noise to data."""
    labels, size = np.asarray(peer.timesteps.cpu(), np.float64), config["num_train_timesteps"]
    found = find(source)
    whole, where = not peer.timesteps.is_floating_point(), scale(source, config)
    levels = _levels_of(peer) if hasattr(peer, "sigmas") else None
    asked = legs = None
    if found.calls == 2:
        # every point but the first and the end stands there twice, or one between it and the next
        between, levels = source.startswith(BETWEEN), levels[: len(labels) + 1]
        asked = labels if between else None
        labels = labels[::2] if between else labels[np.r_[0, 1 : len(labels) : 2]]
        levels = levels[np.r_[0, 1 : len(levels) - 1 : 2, len(levels) - 1]]
    if levels is not None:
        levels = levels[: len(labels) + 1]
        levels = 1.0 - levels if config.get("invert_sigmas") else levels
        if source == CM and len(labels) == 1:  # draws nothing, also where float32 ends above it
            levels[-1] = config["sigma_min"]
        if "sigma_data" in config:  # sigma_min after its float32 power, which may lie below
            levels[-1] = min(levels[-2:])
        grid = levels if where != "vp" else indices(schedule, levels)
    else:
        last = -1.0 if config.get("set_alpha_to_one", True) else 0.0
        last = DISTILLED.get(source, last)
        if source == "LCMScheduler" and len(labels) < peer.num_inference_steps:
            last = labels[-1]  # the class takes the end of a list cut by strength for one more step
        places = _places(config, peer, schedule)
        if source == "PNDMScheduler" and len(schedule.alphas_cumprod) < size:
            raise ValueError(
                "FsScheduler: PNDMScheduler's table repeats levels, over which no plan counts its "
                "stride; compat=None is accepted"
            )
        grid = places[np.append(labels, last).astype(int)]
        if source in ("DDIMScheduler", COGVIDEOX):
            to = np.arange(size) - size // peer.num_inference_steps
            legs = np.stack([places[:-1], places[np.where(to < 0, last, to).astype(int)]], 1)
    stuck = [] if source in STRIDED else np.flatnonzero(np.diff(grid) > 0.0)
    if len(stuck) and standing and where == "sigma" and config.get("rescale_betas_zero_snr"):
        table = Table(tuple(levels[-2::-1].tolist()))
        return Points(np.arange(table.t_max, -2.0, -1.0), labels, table)
    if len(stuck):
        raise ValueError(
            f"FsScheduler: {source}'s noise level rises in step {stuck[0]} of this config's grid; "
            "compat=None is accepted"
        )
    return Points(grid, labels, schedule, whole, legs, asked)


def _check_begin(source: str, config: dict, at: float, label: float, schedule: DiscreteVP) -> None:
    """ValueError where no step begins at the first point: a timestep that the schedule has not, or
    alpha = 0, by which an eps, and all that PNDM has, is divided.
    """
    size, where = config["num_train_timesteps"], f"FsScheduler.set_timesteps: timestep {label:g}"
    if label > size - 1:
        raise ValueError(
            f"{where} of {source}, with steps_offset = {config['steps_offset']}, is beyond "
            f"{size - 1}; fewer steps are accepted"
        )
    divides = source == "PNDMScheduler" or config["prediction_type"] == "epsilon"
    if divides and float(schedule.alpha(at)) == 0.0:
        raise ValueError(
            f"{where} has zero terminal SNR, alpha = 0, by which {source} divides with "
            f"prediction_type = {config['prediction_type']!r}; timestep_spacing='leading', which "
            "begins below it, is accepted"
        )


def _model(
    source: str,
    config: dict,
    grid: np.ndarray,
    labels: np.ndarray,
    schedule: DiscreteVP | None,
    asked: np.ndarray | None = None,
) -> Model:
    """The model's words; its time is each point's label: a rule where one fits, else a lookup.
    asked: the labels of all calls, where a step asks between two points.
    """

    every = labels if asked is None else asked
    if source.endswith("HeunDiscreteScheduler"):  # asks twice at all points but the first
        every = np.append(labels[:1], np.repeat(labels[1:], 2))

    def standing(t: np.ndarray) -> np.ndarray:
        # two labels may stand at one level, or a grid rise
        if asked is not None or (np.diff(grid) >= 0.0).any():
            return every
        return np.interp(t, grid[-2::-1], labels[::-1])

    if source in (SCM, WUERSTCHEN):
        return (scm if source == SCM else wuerstchen).model_of(config, labels)
    if "sigma_data" in config:
        # the class's have float32 rounding
        exact = np.array_equal(labels, told(config, grid[:-1]))
        return edm_model(config) if exact else replace(edm_model(config), time=standing)
    if source == IPNDM:
        return ipndm_model(grid, labels)
    where = scale(source, config)
    kind = PREDICTIONS[config["prediction_type"]] if find(source).predictions else "flow"
    if where == "flow":
        size = float(config["num_train_timesteps"])
        time = size if np.array_equal(labels, grid[:-1] * size) else standing
        return Model(None, Flow(), kind, time=time, model_id="unknown")
    if where == "vp":
        time = None if np.array_equal(labels, grid[:-1]) else standing
        return Model(None, schedule, kind, time=time, model_id="unknown")
    if isinstance(schedule, Table):
        kind = "edm" if kind == "v" else kind
        return Model(None, schedule, kind, time=standing, input_scale="vp", model_id="unknown")
    levels = np.exp(-schedule.half_log_snr(np.array([schedule.t_min, schedule.t_finite])))
    kind, low = "edm" if kind == "v" else kind, levels[0] * (1.0 - SAME)  # a table may have one
    edm = EDM(float(low), float(levels[1]), sigma_data=1.0)
    return Model(None, edm, kind, time=standing, input_scale="vp", model_id="unknown")


def _asked(source: str, found: Points, schedule: DiscreteVP) -> np.ndarray:
    """The labels of all calls of BETWEEN, a second one in each step that ends above 0: half-way in
    ln sigma to the step's end; of the ancestral one to the level it goes down to, s'^2/s, which
    puts it at the end itself.
    """
    begins, ends = found.grid[:-1], found.grid[1:]
    begins, ends = begins[ends > 0.0], ends[ends > 0.0]
    middles = indices(schedule, np.sqrt(begins * ends))
    if source == "KDPM2AncestralDiscreteScheduler":
        middles = np.append(found.labels[1:], indices(schedule, ends[len(found.labels) - 1 :]))
    return np.insert(found.labels, np.arange(1, len(middles) + 1), middles)


def _levels_of(peer) -> np.ndarray:
    """The class's sigmas; the last one twice where it asks the model there too."""
    levels = np.asarray(peer.sigmas.cpu(), dtype=np.float64)
    return np.append(levels, levels[-1]) if len(levels) == len(peer.timesteps) else levels


def _alphas(config: dict, peer) -> np.ndarray:
    """The class's alphas_cumprod [T], and the exact ones where float32 has run out of numbers."""
    table = np.asarray(peer.alphas_cumprod.cpu(), dtype=np.float64)
    lost = table < np.finfo(np.float32).tiny
    return np.where(lost, noise_schedule(config).alphas_cumprod, table) if lost.any() else table


def _places(config: dict, peer, schedule: DiscreteVP) -> np.ndarray:
    """Where each of the class's timesteps stands on the schedule [T + 1], and -1, no noise."""
    table = _alphas(config, peer)
    places = np.arange(len(table), dtype=np.float64)
    if not np.array_equal(table, schedule.alphas_cumprod):
        with np.errstate(divide="ignore"):
            places = indices(schedule, np.sqrt((1.0 - table) / table))
    return np.append(places, schedule.t_zero)


def _pndm_points(found: Points, skip: bool) -> Points:
    """The points with those that PNDM asks the model at again."""
    steps = len(found.labels)
    if not skip and steps < STEP:
        raise ValueError(
            f"FsScheduler.set_timesteps: {steps} steps of PNDMScheduler with skip_prk_steps = "
            f"False, whose first three are Runge-Kutta steps; {STEP} or more are accepted"
        )
    if not repeats(skip, steps):
        return found
    return Points(*(with_repeats(values, skip) for values in (found.grid, found.labels)))
