"""A config becomes a plan: its points, the model's words, the solver with its arguments. No torch, no diffusers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .. import solvers
from ..model import Model, to_eps
from ..plan import Plan
from ..schedules import EDM, DiscreteVP, Flow
from ..solvers._build import ANCHOR, Builder, Lin, M, R, X
from ..solvers._exponential import gain, weights
from .diffusers_flow import flow_points
from .diffusers_grids import Points, distilled_points, indices, noise_schedule, points
from .diffusers_sources import PREDICTIONS, find, scale

FULL_ORDER_FROM = 15  # steps from which diffusers' DPMSolver no longer lowers the order at the end by itself
CLIPPING = ("DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler", "LCMScheduler")


def trained_levels(where: str, config: dict, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) [n] that a training timestep stands for."""
    if where == "flow":
        return 1.0 - labels / config["num_train_timesteps"], labels / config["num_train_timesteps"]
    schedule = noise_schedule(config, finite=where == "sigma")
    alpha, sigma = schedule.alpha(labels), schedule.sigma(labels)
    return (alpha, sigma) if where == "vp" else (np.ones_like(alpha), sigma / alpha)


def layout(source: str, config: dict, steps, timesteps, sigmas, mu, original_steps, peer: object = None) -> Points:
    """Grid and labels: the config's rules in float64, or as `peer`, the class itself after its set_timesteps, has them."""
    family, where = find(source).family, scale(source, config)
    if peer is not None:
        return _peer_layout(source, config, peer)
    if source == "LCMScheduler":
        return replace(distilled_points(config, steps, timesteps, original_steps), schedule=noise_schedule(config), whole=True)
    if where == "flow":
        return flow_points(family, config, steps, timesteps=timesteps, sigmas=sigmas, mu=mu)
    schedule = noise_schedule(config, finite=where == "sigma")
    found = points(family, config, schedule, steps, timesteps=timesteps, sigmas=sigmas)
    return replace(found, schedule=schedule, whole=where == "vp" and bool((found.labels == np.round(found.labels)).all()))


def plan(source: str, config: dict, at: Points, *, first: int = 0, eta: float = 0.0, compat: bool = False) -> Plan:
    """The plan of a class with this config on these points, from grid point `first` on (the state already stands there).

    compat: half weight in the third-order term and the unclipped direction in DDIM, as diffusers has them.
    """
    grid, labels = at.grid[first:], at.labels[first:]
    solver, words = _solver(source, config, len(at.labels), first, eta, compat)
    clip = float(config["clip_sample_range"]) if source in CLIPPING and config["clip_sample"] else 0.0
    made = solver(_model(source, config, grid, labels, at.schedule), grid, **words, **({"clip": clip} if clip else {}))
    if clip and compat and source == "DDIMScheduler":
        made = _unclipped_direction(made)
    return made.with_note(made_for=f"diffusers {source}")


def pairs(model: Model, grid, *, variant: str = "midpoint", lower_order_final: bool = True, first: int = 0) -> Plan:
    """DPM-Solver++(2S) on grid points in pairs, as diffusers' singlestep class walks them: point i is the stage of the step i-1 -> i+1.

    h = lambda_{i+1} - lambda_{i-1}, r = (lambda_i - lambda_{i-1})/h, m and m1 the outputs at i-1 and i (x0):
    x_i = (sigma_i/sigma)·x + alpha_i (1 - e^{-rh})·m
    x_{i+1} = (sigma_{i+1}/sigma)·x + alpha_{i+1} (1 - e^{-h})·[m + (m1 - m)/(2r)], or "heun": the line through m and m1 integrated exactly.

    A step to sigma = 0, or from alpha = 0, is one of first order; lower_order_final makes the last two of an even number so. One
    evaluation a point. first: how many points of the whole grid were left out, so that the same points pair up. Lu et al. 2022,
    arXiv:2211.01095, Alg. 1.
    """
    b = Builder(model, grid, stored="x0")
    level, orders = b.half_log_snr, []
    for i in range(b.n):
        second = (
            i > 0 and (i + first) % 2 == 1 and bool(np.isfinite(level[[i - 1, i + 1]]).all()) and not (lower_order_final and i == b.n - 1)
        )
        orders.append(2 if second else 1)
        alpha, sigma = b.alpha[i + 1], b.sigma[i + 1]
        if not second:
            h = float(level[i + 1] - level[i])
            x = alpha * gain(h) * M + (Lin() if sigma == 0.0 else (sigma / b.sigma[i]) * X)
            b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": M}, anchor=X)
            continue
        h = float(level[i + 1] - level[i - 1])
        r = float(level[i] - level[i - 1]) / h
        w = gain(h) / (2.0 * r) if variant == "midpoint" else weights((0.0, r), h)[1]
        x = (sigma / b.sigma[i - 1]) * Lin({ANCHOR: 1.0}) + alpha * ((gain(h) - w) * R(f"m{i - 1}") + w * M)
        b.row(b.t[i], to=b.t[i + 1], x=x)
    cite = ["Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, Alg. 1 (2S), arXiv:2211.01095"]
    return b.build("dpmpp_2s on pairs", arguments={"variant": variant}, order=max(orders), orders=orders, citations=cite)


# -- inside ------------------------------------------------------------------------------------------------------------------
def _peer_layout(source: str, config: dict, peer) -> Points:
    """Levels and labels as a diffusers scheduler has them, on the table it has. ValueError where its steps do not follow one another."""
    labels = np.asarray(peer.timesteps.cpu(), dtype=np.float64)
    whole, where = not peer.timesteps.is_floating_point(), scale(source, config)
    levels = np.asarray(peer.sigmas.cpu(), dtype=np.float64) if hasattr(peer, "sigmas") else None
    if source == "HeunDiscreteScheduler":  # every point but the first and the end stands there twice
        labels, levels = labels[np.r_[0, 1 : len(labels) : 2]], levels[np.r_[0, 1 : len(levels) - 1 : 2, len(levels) - 1]]
    schedule = None if where == "flow" else DiscreteVP(np.asarray(peer.alphas_cumprod.cpu(), dtype=np.float64))
    if levels is not None:
        levels = levels[: len(labels) + 1]
        grid = levels if where != "vp" else indices(schedule, levels)
    else:
        ends = config.get("set_alpha_to_one", True) or source == "LCMScheduler"
        grid = np.append(labels, -1.0 if ends else 0.0)
        stride = config["num_train_timesteps"] // len(labels)
        if source == "DDIMScheduler" and not (np.maximum(labels - stride, -1.0) == np.append(labels[1:], -1.0)).all():
            where = f"timestep_spacing = {config['timestep_spacing']!r}"
            raise ValueError(
                f"FsScheduler: {source} with {where} steps from t to t - {stride}, not to its next timestep; 'leading' or compat=None"
                " is accepted"
            )
    if not (np.diff(grid) < 0.0).all():
        raise ValueError(
            f"FsScheduler: {source} repeats a noise level on this config's grid and divides by 0 there; compat=None is accepted"
        )
    return Points(grid, labels, schedule, whole)


def _model(source: str, config: dict, grid: np.ndarray, labels: np.ndarray, schedule: DiscreteVP | None) -> Model:
    """The model's words. Its time is the label at each point: a rule where one fits, else a lookup."""

    def told(t: np.ndarray) -> np.ndarray:
        return np.interp(t, grid[-2::-1], labels[::-1])

    where = scale(source, config)
    kind = PREDICTIONS[config["prediction_type"]] if find(source).predictions else "flow"
    if where == "flow":
        size = float(config["num_train_timesteps"])
        return Model(None, Flow(), kind, time=size if np.array_equal(labels, grid[:-1] * size) else told, model_id="unknown")
    if where == "vp":
        return Model(None, schedule, kind, time=None if np.array_equal(labels, grid[:-1]) else told, model_id="unknown")
    levels = np.exp(-schedule.half_log_snr(np.array([schedule.t_min, schedule.t_finite])))
    kind = "edm" if kind == "v" else kind
    return Model(None, EDM(float(levels[0]), float(levels[1]), sigma_data=1.0), kind, time=told, input_scale="vp", model_id="unknown")


def _solver(name: str, config: dict, steps: int, first: int, eta: float, compat: bool):
    """(maker, its arguments) of a class; steps and first as the whole run counts them."""
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
        return pairs, {"variant": config["solver_type"], "lower_order_final": bool(config["lower_order_final"]), "first": first}
    if name.startswith("DPMSolver"):
        return _multistep(config, steps, first, compat)
    return {"EulerAncestralDiscreteScheduler": solvers.euler_ancestral, "HeunDiscreteScheduler": solvers.heun}.get(name, solvers.euler), {}


def _multistep(config: dict, steps: int, first: int, compat: bool):
    sde, order, variant = config["algorithm_type"] == "sde-dpmsolver++", config["solver_order"], config["solver_type"]
    low = bool(config.get("euler_at_final") or (config["lower_order_final"] and steps < FULL_ORDER_FROM))
    if order == 1:
        return solvers.ddim, {"eta": 1.0 if sde else 0.0}
    if sde:
        if compat and low and config["final_sigmas_type"] == "sigma_min":
            raise ValueError(
                "FsScheduler: compat='diffusers' of sde-dpmsolver++ with 'sigma_min' and a last step of first order; 'zero' is accepted"
            )
        return solvers.dpmpp_2m_sde, {"variant": variant}
    if order == 2:
        return solvers.dpmpp_2m, {"variant": variant, "lower_order_final": low}
    words = {"lower_order_final": low}
    if compat:
        words["compat"] = "k-diffusion" if variant == "heun" else "diffusers"
        if variant == "midpoint" and not low and steps - first < FULL_ORDER_FROM:
            raise ValueError(
                f"FsScheduler: compat='diffusers' with solver_order = 3 and {steps - first} steps of {steps}, at full order to the end, is"
                " not reproduced; solver_type = 'heun' or compat=None is accepted"
            )
    return solvers.dpmpp_3m, words


def _unclipped_direction(made: Plan) -> Plan:
    """DDIM that clips x0 but not the noise it steps along: x' = alpha' m + a sigma eps, a the coefficient of x, eps of the raw output."""
    m, f = 1 + made.S, 2 + made.S
    table, reads = made.M.copy(), made.reads.copy()
    for i in range(1, made.rows - 1):
        pull = table[i, 0, 0] * made.sigma[i]
        if not pull:
            continue
        p, q = to_eps(made.note["prediction"], made.alpha[i], made.sigma[i])
        table[i, 0, [0, m, f]] = pull * p, made.alpha[i + 1], pull * q
        reads[i] = (reads[i] & ~1) | (1 if p else 0) | 1 << m | 1 << f
    note = {**made.note, "solver": "ddim, unclipped direction"}
    return replace(made, M=table, reads=reads, note=note)
