"""Which solver makes a class's rows, and with which arguments. No torch, no diffusers."""

from __future__ import annotations

import numpy as np

from ... import solvers
from ...solvers._grouped import in_turn
from . import churned
from .ancestral import NAME as LTX
from .ancestral import ancestral
from .consistency import NAME as CM
from .consistency import bounded
from .dpm import Form, dpm, multistep_orders
from .grids import Points, noise_schedule
from .inverse import INVERSE, inverse_maker
from .ipndm import NAME as IPNDM
from .ipndm import ipndm
from .multistep import deis, lms
from .pndm import STEP, WARM, plms, repeats, runge_kutta_plms
from .sa import sa, strengths
from .scm import NAME as SCM
from .scm import scm
from .sources import COGVIDEOX, COSINE, UNCLIP, VARIANCES, find, scale
from .step_options import CHURNED, Told, options
from .steps import consistency, heun, posterior, strided
from .table import Table, along
from .unipc import unipc
from .wuerstchen import NAME as WUERSTCHEN
from .wuerstchen import wuerstchen

# steps from which diffusers' DPMSolver no longer lowers the order at the end by itself
FULL_ORDER_FROM = 15


def maker(name: str, config: dict, at: Points, first: int, eta: Told, compat: bool):
    """(maker, its arguments) of a class; first counts in the whole run `at`."""
    told = options(eta)
    steps, still = len(at.labels), bool((np.diff(at.grid[first:]) == 0.0).any())
    if told and name in CHURNED:
        return _churned(name, config, at, told, compat)
    if isinstance(at.schedule, Table):
        return along, {"drawn": name == "EulerAncestralDiscreteScheduler"}
    if name in INVERSE:
        return inverse_maker(name, config, at, first, compat)
    if name == "PNDMScheduler":
        return _pndm(config, at, first, compat)
    if name in ("DDIMScheduler", COGVIDEOX):
        ends = {"ends": at.legs[at.labels[first:].astype(int), 1]} if compat else {}
        return strided if compat else solvers.ddim, {"eta": eta, **ends}
    if name in ("DDPMScheduler", UNCLIP):
        return _ddpm(name, config, at, first, compat)
    if name == "LCMScheduler":
        words = {"timestep_scaling": config["timestep_scaling"]}
        if still or (compat and not np.array_equal(at.labels, at.grid[:-1])):
            return consistency, words | {"labels": at.labels[first:]}
        return solvers.lcm, words | {"boundary": True} if scale(name, config) == "vp" else {}
    if name == CM:
        words = {"sigma_min": config["sigma_min"], "s_noise": config["s_noise"]}
        bound = 1.0 if config["clip_denoised"] else 0.0
        exact = not (still or bound)
        words |= {"sigma_data": config["sigma_data"]} if exact else {"bound": bound}
        return solvers.cm if exact else bounded, words
    if name == "TCDScheduler":
        return solvers.tcd, {"gamma": eta, "compat": "diffusers" if compat else "exact"}
    if name == "UniPCMultistepScheduler":
        return _unipc(config, first, compat)
    if name == "DPMSolverSDEScheduler":
        return solvers.dpmpp_sde, {"compat": "diffusers" if compat else "exact", **told}
    if name == COSINE or name.startswith(("DPMSolver", "EDMDPM")):
        return _dpm(name, config, at, first, compat)
    if name == "DEISMultistepScheduler":
        low = bool(config["lower_order_final"]) and steps < FULL_ORDER_FROM
        words = {"order": config["solver_order"], "lower_order_final": low}
        return deis if still else solvers.deis, words
    if name == "SASolverScheduler":
        return _sa(config, at, first, compat)
    if name == "LMSDiscreteScheduler":
        exact = not (still or (compat and first))
        return (solvers.lms, told) if exact else (lms, {"run": at.grid, "first": first, **told})
    return _one_step(name, config, at, first, compat)


# -- inside ----------------------------------------------------------------------------------------
def _ddpm(name: str, config: dict, at: Points, first: int, compat: bool):
    kind = VARIANCES[config["variance_type"]]
    if kind == "fixed_small" and not compat:
        return solvers.ddim, {"eta": 1.0}
    own = {"betas": _betas(config, at.labels[first:])} if compat and name == UNCLIP else {}
    return posterior, {"variance": kind, **own}


def _betas(config: dict, labels: np.ndarray) -> list[float | None]:
    """UnCLIP's, of the table that its alphas_cumprod are the float32 products of: in a step to the
    timestep before it divides them by what is left of 1 - alphas_cumprod, 4.1e-5 to 5e-4 at 0.
    """
    table = noise_schedule(config).alphas_cumprod
    own = 1.0 - table / np.append(1.0, table[:-1])
    near = labels - np.append(labels[1:], -1.0) == 1.0
    return [float(own[int(t)]) if k else None for t, k in zip(labels, near, strict=True)]


def _one_step(name: str, config: dict, at: Points, first: int, compat: bool):
    still = bool((np.diff(at.grid[first:]) == 0.0).any())
    if name.endswith("HeunDiscreteScheduler"):
        return heun if still else solvers.heun, {}
    if name == "FlowMatchLCMScheduler":
        return solvers.lcm, {}
    if name == IPNDM:
        return ipndm if compat else solvers.ipndm, {}
    if name == SCM:
        return scm, {"labels": at.labels[first:]}
    if name == WUERSTCHEN:
        return wuerstchen, {"ends": np.append(at.labels[1:], at.past)[first:]}
    if name == LTX:
        words = {"eta": config["eta"], "s_noise": config["s_noise"]}
        return ancestral if compat else solvers.euler_ancestral, words
    if name.startswith("KDPM2"):
        return solvers.dpm_2_ancestral if "Ancestral" in name else solvers.dpm_2, {}
    drawn = name == "EulerAncestralDiscreteScheduler"
    if still:  # Euler is DPM-Solver++ of order 1, and its ancestral form the SDE of that
        return dpm, {"orders": [1] * len(at.labels[first:]), "form": Form(sde=drawn)}
    return solvers.euler_ancestral if drawn else solvers.euler, {}


def _churned(name: str, config: dict, at: Points, told: dict, compat: bool):
    churn, flow = told["s_churn"], "Heun" in name
    if not compat:
        solver = "heun(..., space='rho'," if flow else "euler(...,"
        below = " from below sigma = 1" if flow else ""
        raise ValueError(
            f"FsScheduler.step: s_churn = {churn:g} of an exact run, whose noise comes before the "
            f"model is asked; compat='diffusers', or a plan of solvers.{solver} s_churn={churn:g})"
            f"{below} by from_plan, is accepted"
        )
    if config.get("clip_sample") or config.get("thresholding") or isinstance(at.schedule, Table):
        raise ValueError(
            f"FsScheduler.step: s_churn = {churn:g} where predictions are bounded or "
            "levels rise; 0 is accepted"
        )
    words = {"calls": find(name).calls * len(at.labels) - (find(name).calls - 1), **told}
    if flow:
        return churned.flow_heun, words
    return churned.euler, words | {"own": name == "EulerDiscreteScheduler"}


def _pndm(config: dict, at: Points, first: int, compat: bool):
    skip, size, calls = config["skip_prk_steps"], config["num_train_timesteps"], len(at.labels)
    maker = plms if skip else runge_kutta_plms
    if not compat:
        return maker, {"first": first}
    stride = size // (calls - repeats(skip, calls))
    if skip:
        return maker, {"stride": stride}
    return maker, {"stride": stride, "half": stride // 2, "starts": at.grid[:WARM:STEP]}


def _unipc(config: dict, first: int, compat: bool):
    words = {"order": config["solver_order"], "variant": config["solver_type"]}
    words["lower_order_final"] = bool(config["lower_order_final"])
    noise, skipped = not config["predict_x0"], config["disable_corrector"]
    if not (compat or noise or skipped):
        return solvers.unipc, words
    return unipc, words | {"noise": noise, "uncorrected": skipped, "first": first}


def _sa(config: dict, at: Points, first: int, compat: bool):
    return sa, {
        "taus": strengths(config["tau_func"], at.labels[first:].tolist()),
        "predictor_order": config["predictor_order"],
        "corrector_order": config["corrector_order"],
        "noise": config["algorithm_type"] == "noise_prediction",
        "lower_order_final": bool(config["lower_order_final"]),
        "published": compat,
    }


def _dpm(name: str, config: dict, at: Points, first: int, compat: bool):
    steps, order = len(at.labels), config["solver_order"]
    kind = config.get("algorithm_type", "sde-dpmsolver++")  # COSINE's
    single, sde = name == "DPMSolverSinglestepScheduler", kind.startswith("sde")
    noise, variant = not kind.endswith("++"), config["solver_type"]
    bounded = bool(config.get("thresholding") or config.get("clip_sample"))
    form = Form(noise, sde, variant, single, bounded, exact=not compat)
    low = bool(config["lower_order_final"])
    if single:
        return dpm, {"orders": in_turn(steps, first, order, low), "form": form}
    low, euler = low and steps < FULL_ORDER_FROM, bool(config.get("euler_at_final"))
    deviates = order == 3 or (sde and (low or euler))
    if noise or (sde and order == 3) or (compat and deviates) or (np.diff(at.grid) == 0.0).any():
        return dpm, {"orders": multistep_orders(steps, first, order, low, euler), "form": form}
    if order == 1:
        return solvers.ddim, {"eta": 1.0 if sde else 0.0}
    if sde:
        return solvers.dpmpp_2m_sde, {"variant": variant}
    if order == 2:
        return solvers.dpmpp_2m, {"variant": variant, "lower_order_final": low or euler}
    return solvers.dpmpp_3m, {"lower_order_final": low or euler}
