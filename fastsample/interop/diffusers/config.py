"""A config becomes a plan: its points, the model's words, the solver with its arguments. No torch,
no diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ... import solvers
from ...model import Model
from ...plan import Plan
from ...schedules import EDM, DiscreteVP, Flow
from .flow import flow_points
from .grids import Points, distilled_points, indices, levels_of, noise_schedule, points
from .matching import matching
from .plan import scale_of
from .sources import PREDICTIONS, find, scale
from .steps import pairs, plms, sde_2m, strided, third

# steps from which diffusers' DPMSolver no longer lowers the order at the end by itself
FULL_ORDER_FROM = 15
STRIDED = ("DDIMScheduler", "PNDMScheduler")  # step from t to t - T//n, not to their next timestep
MATCH = "FlowMatchEulerDiscreteScheduler"
# of a level, or of one index of the table: what a step of length 0 becomes, since solvers divide by
# its length
SHORTEST = 1e-12
CLIPPING = ("DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler", "LCMScheduler")


def trained_levels(where: str, config: dict, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) [n] that a training timestep stands for."""
    if where == "flow":
        return 1.0 - labels / config["num_train_timesteps"], labels / config["num_train_timesteps"]
    schedule = noise_schedule(config, finite=where == "sigma")
    alpha, sigma = schedule.alpha(labels), schedule.sigma(labels)
    return (alpha, sigma) if where == "vp" else (np.ones_like(alpha), sigma / alpha)


def trained(source: str, config: dict, plan: Plan) -> Model:
    """The words of the model that a config is for, on the scale of the plan: VP and sigma/alpha are
    one schedule. A shift that is found for every image size is taken from the plan.
    """
    if not config:
        raise ValueError(
            "FsScheduler.from_plan: like is a scheduler of a plan itself; the pipeline's own is "
            "accepted"
        )
    kind = PREDICTIONS[config["prediction_type"]] if find(source).predictions else "flow"
    if scale(source, config) == "flow":
        shift = config.get("shift", config.get("flow_shift"))
        if config.get("use_dynamic_shifting"):
            shift = (plan.note.get("schedule") or {}).get("shift", shift)
        return Model(None, Flow(shift), kind, time=config["num_train_timesteps"])
    on_sigma = scale_of(plan) == "sigma"
    table = noise_schedule(config, finite=on_sigma)
    if not on_sigma:
        return Model(None, table, kind)
    low, high = levels_of(table)[[0, -1]]
    told = lambda t: indices(table, t)
    return Model(None, EDM(float(low), float(high)), kind, time=told, input_scale="vp")


def layout(source: str, config: dict, steps, timesteps, sigmas, mu, original_steps) -> Points:
    """Grid and labels by the config's rules in float64."""
    family, where = find(source).family, scale(source, config)
    if source == "LCMScheduler":
        return replace(
            distilled_points(config, steps, timesteps, original_steps),
            schedule=noise_schedule(config),
            whole=True,
        )
    if where == "flow":
        return flow_points(family, config, steps, timesteps=timesteps, sigmas=sigmas, mu=mu)
    schedule = noise_schedule(config, finite=where == "sigma")
    found = points(family, config, schedule, steps, timesteps=timesteps, sigmas=sigmas)
    if source == "PNDMScheduler" and len(found.labels) > 1:  # its first step is made twice
        found = Points(*(np.insert(values, 1, values[1]) for values in (found.grid, found.labels)))
    whole = where == "vp" and bool((found.labels == np.round(found.labels)).all())
    return replace(found, schedule=schedule, whole=whole)


def peer_table(source: str, config: dict, peer) -> DiscreteVP | None:
    """The noise schedule that a diffusers scheduler has in float32; None for a flow."""
    if scale(source, config) == "flow":
        return None
    table = np.asarray(peer.alphas_cumprod.cpu(), dtype=np.float64)
    if scale(source, config) == "sigma":
        # a table whose last entry is set to 2^-24 may rise there; sigma scale reads its ends alone
        table = np.sort(table)[::-1]
    try:
        return DiscreteVP(table)
    except ValueError as error:
        raise ValueError(
            f"FsScheduler: {source}'s own noise table has no falling levels ({error}); compat=None "
            "is accepted"
        ) from None


def peer_layout(source: str, config: dict, peer) -> Points:
    """Levels and labels on the table of `peer`, the class itself after its set_timesteps.

    ValueError where no plan has them.
    """
    labels = np.asarray(peer.timesteps.cpu(), dtype=np.float64)
    whole, where = not peer.timesteps.is_floating_point(), scale(source, config)
    levels = np.asarray(peer.sigmas.cpu(), dtype=np.float64) if hasattr(peer, "sigmas") else None
    if source == "HeunDiscreteScheduler":
        # every point but the first and the end stands there twice
        labels = labels[np.r_[0, 1 : len(labels) : 2]]
        levels = levels[np.r_[0, 1 : len(levels) - 1 : 2, len(levels) - 1]]
    schedule = peer_table(source, config, peer)
    if levels is not None:
        levels = levels[: len(labels) + 1]
        levels = 1.0 - levels if config.get("invert_sigmas") else levels
        grid = levels if where != "vp" else indices(schedule, levels)
    else:
        ends = config.get("set_alpha_to_one", True) or source == "LCMScheduler"
        grid = np.append(labels, -1.0 if ends else 0.0)
    repeats = source == MATCH and (np.diff(grid) <= 0.0).all()
    if repeats or source in STRIDED:
        return Points(grid, labels, schedule, whole)
    if grid[-1] == grid[-2]:  # a last step of length 0
        short = SHORTEST * max(1.0, grid[-2])
        if len(grid) == 2:
            grid[-1] -= short
        else:
            grid[-2] += short
    if not (np.diff(grid) < 0.0).all():
        raise ValueError(
            f"FsScheduler: {source} repeats a noise level on this config's grid and divides by 0 "
            "there; compat=None is accepted"
        )
    return Points(grid, labels, schedule, whole)


def plan(
    source: str, config: dict, at: Points, *, first: int = 0, eta: float = 0.0, compat: bool = False
) -> Plan:
    """The plan of a class with this config on these points, from grid point `first` on (the state
    already stands there).

    compat: as diffusers has it, half weight in the third-order term, the unclipped direction and
    the fixed stride of DDIM included.
    """
    grid, labels = at.grid[first:], at.labels[first:]
    if source == MATCH:
        model = _model(source, config, grid, labels, None)
        words = {"stochastic": config["stochastic_sampling"], "inverted": config["invert_sigmas"]}
        made = matching(model, grid, labels, first=first, **words)
        return made.with_note(made_for=f"diffusers {source}")
    solver, words = _solver(source, config, len(at.labels), first, eta, compat)
    if source in CLIPPING and config["clip_sample"]:
        words["clip"] = float(config["clip_sample_range"])
    made = solver(_model(source, config, grid, labels, at.schedule), grid, **words)
    return made.with_note(made_for=f"diffusers {source}")


def draws(source: str, config: dict) -> Callable[[float, float], bool] | None:
    """(label, eta) -> does the class draw in a step from there, also where it multiplies the noise
    by 0; None if it never draws so.
    """
    sde = config.get("algorithm_type", "").startswith("sde")
    if sde or source == "EulerAncestralDiscreteScheduler":
        return lambda label, eta: True
    return {
        "DDPMScheduler": lambda label, eta: label > 0.0,
        "DDIMScheduler": lambda label, eta: eta > 0.0,
        MATCH: (lambda label, eta: True) if config.get("stochastic_sampling") else None,
    }.get(source)


# -- inside ----------------------------------------------------------------------------------------
def _model(
    source: str, config: dict, grid: np.ndarray, labels: np.ndarray, schedule: DiscreteVP | None
) -> Model:
    """The model's words; its time is each point's label: a rule where one fits, else a lookup."""

    def told(t: np.ndarray) -> np.ndarray:
        return np.interp(t, grid[-2::-1], labels[::-1])

    where = scale(source, config)
    kind = PREDICTIONS[config["prediction_type"]] if find(source).predictions else "flow"
    if where == "flow":
        size = float(config["num_train_timesteps"])
        time = size if np.array_equal(labels, grid[:-1] * size) else told
        return Model(None, Flow(), kind, time=time, model_id="unknown")
    if where == "vp":
        time = None if np.array_equal(labels, grid[:-1]) else told
        return Model(None, schedule, kind, time=time, model_id="unknown")
    levels = np.exp(-schedule.half_log_snr(np.array([schedule.t_min, schedule.t_finite])))
    kind = "edm" if kind == "v" else kind
    edm = EDM(float(levels[0]), float(levels[1]), sigma_data=1.0)
    return Model(None, edm, kind, time=told, input_scale="vp", model_id="unknown")


def _solver(name: str, config: dict, steps: int, first: int, eta: float, compat: bool):
    """(maker, its arguments) of a class; steps (model calls) and first count in the whole run."""
    size = config["num_train_timesteps"]
    if name == "PNDMScheduler":
        return plms, {"stride": size // (steps - (steps > 1))} if compat else {"first": first}
    if name == "DDIMScheduler" and compat:
        return strided, {"stride": size // steps, "eta": eta}
    if name in ("DDIMScheduler", "DDPMScheduler"):
        return solvers.ddim, {"eta": 1.0 if name == "DDPMScheduler" else eta}
    if name == "LCMScheduler":
        return solvers.lcm, {"boundary": True, "timestep_scaling": config["timestep_scaling"]}
    if name == "UniPCMultistepScheduler":
        return solvers.unipc, {
            "order": config["solver_order"],
            "variant": config["solver_type"],
            "lower_order_final": bool(config["lower_order_final"]),
        }
    if name == "DPMSolverSinglestepScheduler" and config["solver_order"] == 2:
        return pairs, {
            "variant": config["solver_type"],
            "lower_order_final": bool(config["lower_order_final"]),
            "first": first,
        }
    if name.startswith("DPMSolver"):
        return _multistep(config, steps, compat)
    return {
        "EulerAncestralDiscreteScheduler": solvers.euler_ancestral,
        "HeunDiscreteScheduler": solvers.heun,
    }.get(name, solvers.euler), {}


def _multistep(config: dict, steps: int, compat: bool):
    sde = config["algorithm_type"] == "sde-dpmsolver++"
    order, variant = config["solver_order"], config["solver_type"]
    lowered = bool(config["lower_order_final"] and steps < FULL_ORDER_FROM)
    at_final = bool(config.get("euler_at_final"))
    if order == 1:
        return solvers.ddim, {"eta": 1.0 if sde else 0.0}
    if sde:
        last_of_first_order = compat and (lowered or at_final)
        return sde_2m if last_of_first_order else solvers.dpmpp_2m_sde, {"variant": variant}
    if order == 2:
        return solvers.dpmpp_2m, {"variant": variant, "lower_order_final": lowered or at_final}
    if compat:
        return third, {"variant": variant, "lower_order_final": lowered, "euler_at_final": at_final}
    return solvers.dpmpp_3m, {"lower_order_final": lowered or at_final}
