"""SAMPLERs: functions that ComfyUI's KSAMPLER calls with its denoiser, run by
`fastsample.interop.k_sample` on the state that the model has.

A model says by its own noise_scaling what its state is: x0 + sigma·eps (EPS, V, EDM), or
(1 - sigma)·x0 + sigma·eps (CONST: flow models), where sigma goes up to exactly 1. Flow models with
larger noise run as if on theirs divided by its size.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import comfy.samplers
import torch
from torch import Tensor

from fastsample import Plan
from fastsample.grids import from_sigmas
from fastsample.interop import k_remake, k_sample, k_scale, k_sigmas, k_state
from fastsample.schedules import EDM, Flow
from fastsample.solvers import SOLVERS

KINDS = {
    "sigma": "x0 + sigma eps (SD, SDXL, EDM)",
    "flow": "(1 - sigma) x0 + sigma eps (Flux, SD3, Wan, Qwen)",
}
KEEPS = {1.0: "sigma", 0.5: "flow"}  # of the latent at sigma = 0.5
SIZED = "x", "denoised"  # what a callback is told that has the size of the noise
ABOVE = 0.01  # relative: so much above the model's largest sigma tables of one family may begin
TRIED = {EDM(): (9.0, 3.0, 1.0, 0.3, 0.0), Flow(): (1.0, 0.7, 0.5, 0.2, 0.0)}


# -- what the host says of its model ---------------------------------------------------------------
def sampling_of(model: Any) -> Any:
    """The model_sampling behind the denoiser that a SAMPLER is called with, by the host or by
    another SAMPLER that wraps this one, and its model.
    """
    try:
        return model.inner_model.inner_model.model_sampling
    except AttributeError:
        raise ValueError(
            "fastsample: the SAMPLER was called by another one, whose model "
            f"({type(model).__name__:.60}) does not say which model is behind it; "
            "SamplerCustomAdvanced, or a SAMPLER that hands on inner_model, is accepted"
        ) from None


class Kind(NamedTuple):
    """A model's state, sigma or flow, and how large the noise is in it: 1, and 8 for HiDream O1,
    whose state is (1 - sigma)·x0 + sigma·8·eps.
    """

    state: str
    size: float


def kind_of(sampling: Any, x: Tensor) -> Kind:
    """By what noise_scaling makes of noise and latent of x's shape at sigma = 0.5 and 1."""
    if not isinstance(x, Tensor) or x.is_nested:
        raise ValueError(
            "fastsample: the latent has several tensors (audio and video) and arrived unpacked; a "
            "ComfyUI that packs them into one, or a latent of one tensor, is accepted"
        )
    noise, latent = scaled_by(sampling, x.new_tensor(0.5), x, False)
    state, size = KEEPS.get(latent), 2.0 * noise
    ends = size, 2.0 * latent - 1.0
    if state is None or scaled_by(sampling, x.new_tensor(1.0), x, False) != ends or size <= 0.0:
        raise ValueError(
            f"fastsample: {type(sampling).__name__} makes {noise:g} noise + {latent:g} latent "
            f"at sigma = 0.5; a model of {KINDS['sigma']} or {KINDS['flow']} is accepted"
        )
    return Kind(state, size)


def scaled_by(sampling: Any, sigma: Tensor, x: Tensor, whole: bool) -> tuple[float, float]:
    """What the host multiplies noise and a latent of x's shape by, in x's arithmetic; nan for one
    that it does not treat all alike.
    """
    one = x.new_ones(1, *x.shape[1:])
    made = (
        sampling.noise_scaling(sigma, *parts, whole)
        for parts in ((one, one - one), (one - one, one.clone()))
    )
    ends = [v.aminmax() for v in made]
    return tuple(float(low) if low == high else math.nan for low, high in ends)


def of_unit_noise(model: Any, size: float) -> Any:
    """The denoiser of the state divided by the noise's size, for x0 divided by it."""
    if size == 1.0:
        return model
    return lambda x, sigma, **extra: model(size * x, sigma, **extra) / size


# -- samplers --------------------------------------------------------------------------------------
def of_plan(plan: Plan, name: str, rebuild: bool) -> tuple[Any, Tensor]:
    """The plan as SAMPLER and SIGMAS. Its whole SIGMAS run from noise, their tail from the latent.
    rebuild: other SIGMAS than the plan's have its solver made on them; else they are refused.
    """
    try:
        state, own = k_state(plan), k_sigmas(plan)
    except ValueError as error:
        raise ValueError(
            f"fastsample: the plan {name} is none for a SAMPLER ({error}); a plan of one model, to "
            "which guidance is left, is accepted"
        ) from None

    def run(model, x, sigmas, extra_args=None, callback=None, disable=None):
        sampling = sampling_of(model)
        kind = kind_of(sampling, x)
        if kind.state != state:
            raise ValueError(
                f"fastsample: the plan {name} is for {KINDS[state]} and the model connected is one "
                f"of {KINDS[kind.state]}; a plan made for such a model is accepted"
            )
        if len(sigmas) < 2:
            return x
        first, top = float(sigmas[0]), float(sampling.sigma_max)
        if first > (1.0 + ABOVE) * top:
            raise ValueError(
                f"fastsample: the SIGMAS of the plan {name} begin at {first:.4g}, and the model "
                f"connected knows noise up to {top:.4g}; a plan made for such a model, or a tail "
                "of these SIGMAS with an image to begin from, is accepted"
            )
        made = _on(plan, name, sigmas, rebuild)
        x = x / kind.size
        if made is plan and plan.sigma[0] != 0.0:  # from noise alone, at the plan's own scale
            whole = comfy.samplers.Sampler().max_denoise(model.inner_model, sigmas)
            noise, latent = (v / kind.size for v in scaled_by(sampling, sigmas[0], x, whole))
            image = getattr(model, "latent_image", 0.0)  # what wraps the model need not have it
            x = (x - latent * image) * (k_scale(plan) / noise)
        return _sampled(made, kind, model, x, extra_args, callback, disable)

    return comfy.samplers.KSAMPLER(run), torch.tensor(own, dtype=torch.float32)


def of_solver(name: str, options: Mapping[str, Any]) -> Any:
    """A solver of the registry as SAMPLER, on whatever SIGMAS it is given."""
    _tried(name, options)  # bad options are refused before anything is sampled

    def run(model, x, sigmas, extra_args=None, callback=None, disable=None):
        if len(sigmas) < 2:
            return x
        kind = kind_of(sampling_of(model), x)
        schedule = Flow() if kind.state == "flow" else EDM()
        try:
            grid = from_sigmas(schedule, sigmas.tolist())
            plan = SOLVERS[name](schedule, grid, prediction="x0", start=0, **options)
        except ValueError as error:
            raise ValueError(
                f"fastsample: the solver {name} does not run on the SIGMAS and the model connected "
                f"({error}); SIGMAS that fall, as BasicScheduler gives them, are accepted"
            ) from None
        return _sampled(plan, kind, model, x / kind.size, extra_args, callback, disable)

    return comfy.samplers.KSAMPLER(run)


def _on(plan: Plan, name: str, sigmas: Tensor, rebuild: bool) -> Plan:
    """The plan for these SIGMAS."""
    try:
        return k_remake(plan, sigmas.tolist(), other=rebuild)
    except ValueError as error:
        raise ValueError(
            f"fastsample: the plan {name} does not run on the SIGMAS connected ({error}); the "
            "SIGMAS output of its Plan or Calibrate node is accepted, whole, or a tail of it to "
            "begin from an image; and any others for a plan of a solver with 'rebuild' there"
        ) from None


def _sampled(plan: Plan, kind: Kind, model, x, extra_args, callback, disable) -> Tensor:
    """The state at the end of the SIGMAS, from x, that of unit noise. Noises are those of the seed,
    the same whatever the batch and the device. Where a mask keeps the latent it is the latent to
    the bit: rows that a search found add up to it but for their error. A mask that changes from
    step to step (differential diffusion) keeps nothing to the end.
    """
    extra, size, seeds = dict(extra_args or {}), kind.size, {}
    if plan.L and extra.get("seed") is not None:  # the host's go up to 2^64 - 1, then from 0 on
        seeds["seed"] = [(int(extra["seed"]) + k) % 2**64 for k in range(len(x))]
    show = callback and (
        lambda told: callback({k: v * size if k in SIZED else v for k, v in told.items()})
    )
    words = {"state": kind.state, **seeds}
    try:
        end = k_sample(plan, of_unit_noise(model, size), x, extra, show, disable, **words) * size
    except ValueError as error:
        raise _told(error) from None
    mask, image = extra.get("denoise_mask"), getattr(model, "latent_image", None)
    moved = "denoise_mask_function" in (extra.get("model_options") or {})
    if mask is None or image is None or moved or plan.sigma[-1] != 0.0:
        return end
    return torch.where(mask == 0.0, image.to(end), end)


def _told(error: ValueError) -> ValueError:
    """What was refused of x, in the words of what is connected."""
    if "x has a root mean square of" in str(error):
        return ValueError(
            f"fastsample: the noise connected is not of unit variance ({error}); RandomNoise, or a "
            "tail of the plan's SIGMAS where the latent has its noise already, is accepted"
        )
    if "x holds NaN or Inf" in str(error):
        return ValueError(
            "fastsample: the noise or the latent connected holds NaN or Inf, which on a flow model "
            "a sampler leaves whose SIGMAS are the first level alone (SplitSigmas at step 0); "
            "finite numbers are accepted"
        )
    return error


# -- the registry ----------------------------------------------------------------------------------
def _tried(name: str, options: Mapping[str, Any]) -> None:
    """Make the solver's plan on any levels; the solver's own ValueError where no state takes it."""
    failed = None
    for schedule, levels in TRIED.items():
        try:
            grid = from_sigmas(schedule, levels)
            plan = SOLVERS[name](schedule, grid, prediction="x0", start=0, **options)
            k_sigmas(plan)
            return
        except ValueError as error:
            failed = error
    raise failed


@lru_cache
def solver_names() -> tuple[str, ...]:
    """The solvers that run on a denoiser alone, without guidance of their own."""
    found = []
    for name in SOLVERS:
        try:
            _tried(name, {})
        except ValueError:
            continue
        found.append(name)
    return tuple(found)


def options_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the solver is given; None is its own. ValueError, one sentence, for one that
    it has not.
    """
    if name not in SOLVERS:
        raise ValueError(
            f"fastsample: there is no solver {name!r:.60}; one of {', '.join(solver_names())} is "
            "accepted"
        )
    given = {word: value for word, value in given.items() if value is not None}
    for word, value in given.items():
        if word not in inspect.signature(SOLVERS[name]).parameters:
            have = [o for o in solver_names() if word in inspect.signature(SOLVERS[o]).parameters]
            raise ValueError(
                f"fastsample: {word} = {value} for the solver {name}, which has none; "
                f"{', '.join(have)} take it"
            )
    return given
