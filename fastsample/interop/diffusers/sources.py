"""The diffusers classes an FsScheduler can stand in for, and what each reads from its config. Pure
data: no torch, no diffusers.

    source, "Scheduler"     scale     solver                            options beside grid and
    left out                                                            noise schedule
    DDIM                    vp        ddim; compat: `steps.strided`     eta at run time
    DDPM                    vp        ddim, eta = 1 (Ho et al. 2020,    variance_type
                                      eq. 7); `steps.posterior`
    UnCLIP                  vp        `steps.posterior`                 variance_type
    DDPMWuerstchen          trig      `wuerstchen`                      scaler, s
    CogVideoXDDIM           vp        as DDIM, with no eta and no       snr_shift_scale
                                      bound
    DPMSolverMultistep      vp, flow  ddim, dpmpp_2m, dpmpp_3m,         algorithm_type, solver_type,
                                      dpmpp_2m_sde; `dpm`               solver_order,
                                                                        lower_order_final,
                                                                        euler_at_final
    DPMSolverSinglestep     vp, flow  `dpm`                             the same but euler_at_final
    UniPCMultistep          vp, flow  unipc; compat: `unipc` here       solver_order, solver_type,
                                                                        lower_order_final,
                                                                        predict_x0,
                                                                        disable_corrector
    DEISMultistep           vp, flow  deis, log rho; `multistep`        solver_order,
                                                                        lower_order_final
    PNDM                    vp        `pndm` (Liu et al. 2022)          skip_prk_steps
    DDIMInverse             vp        inverted; compat: `inverse`
    DPMSolverMultistepInv.  vp        `dpm`, rising                     as DPMSolverMultistep
    LCM                     vp        lcm                               timestep_scaling
    TCD                     vp        tcd                               eta at run time
    EulerDiscrete           sigma     euler
    EulerAncestralDiscrete  sigma     euler_ancestral
    HeunDiscrete            sigma     heun; compat: `steps.heun`
    KDPM2Discrete           sigma     dpm_2
    KDPM2AncestralDiscrete  sigma     dpm_2_ancestral
    DPMSolverSDE            sigma     dpmpp_sde; compat: `path`         noise_sampler_seed
    LMSDiscrete             sigma     lms; compat: `multistep`
    SASolver                vp, flow  `sa`                              predictor_order, tau_func,
                                                                        corrector_order,
                                                                        algorithm_type,
                                                                        lower_order_final
    EDMEuler                sigma     euler
    EDMDPMSolverMultistep   sigma     as DPMSolverMultistep
    CosineDPMSolverMult.    sigma     dpmpp_2m_sde; `dpm`, `path`       as DPMSolverMultistep
    CMStochasticIterative   sigma     cm; clipped: `consistency`        s_noise, clip_denoised
    FlowMatchEulerDiscrete  flow      euler, matching                   invert_sigmas,
                                                                        stochastic_sampling
    FlowMatchHeunDiscrete   flow      heun
    FlowMatchLCM            flow      lcm
    IPNDM                   trig      ipndm; compat: `ipndm`
    SCM                     trig      `scm`                             sigma_data
    LTXEulerAncestralRF     flow      euler_ancestral; `ancestral`      eta, s_noise

Where a class has them: clip_sample, and thresholding (`manners.Thresholding`).

What a config asks beyond this is refused with a sentence, never ignored. (An option of another
class, left in a config, is ignored, as there.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .grids import CONVERSIONS, Family, noise_schedule
from .scm import NAME as SCM
from .sisters import SISTER, SISTERS
from .vocabulary import VARIANCES, check_numbers, check_words
from .wuerstchen import NAME as WUERSTCHEN

COSINE, COGVIDEOX = "CosineDPMSolverMultistepScheduler", "CogVideoXDDIMScheduler"
UNCLIP = "UnCLIPScheduler"
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


@dataclass(frozen=True)
class Source:
    """One diffusers class.

    family       how it lays out timesteps
    only         the values accepted of options that are honoured only in part
    predictions  prediction_type it takes (none: it has no such option)
    pair         without return_dict its step() returns (prev_sample, pred_original_sample)
    calls        calls of the model a step, but the last, which has one
    result       whose dtype prev_sample has: the model "output"'s, the "sample"'s, or the one that
                 "both" fit in, or these and a float32 "noise"
    """

    family: Family
    only: dict = field(default_factory=dict)
    predictions: tuple = ("epsilon", "sample", "v_prediction")
    pair: bool = True
    calls: int = 1
    result: str = "both"


_SOLVER_TYPE = {"solver_type": ("midpoint", "heun"), "solver_order": (1, 2, 3)}
_SINGLE = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++")
_UNCLIP = {"variance_type": ("fixed_small_log", "learned_range")}
_UNCLIP |= {"beta_schedule": ("squaredcos_cap_v2",)}
_SIGMA = Family("sigma", whole=False)
_WITH_FLOW = ("epsilon", "sample", "v_prediction", "flow_prediction")
SOURCES = {
    "DDIMScheduler": Source(Family()),
    "DDPMScheduler": Source(Family(), {"variance_type": tuple(VARIANCES)}),
    UNCLIP: Source(Family(spaced=False), _UNCLIP, ("epsilon", "sample")),
    WUERSTCHEN: Source(Family("trig", whole=False), predictions=(), pair=False, result="output"),
    COGVIDEOX: Source(Family()),
    "DPMSolverMultistepScheduler": Source(
        Family(extra=True, flow="dpm"),
        _SOLVER_TYPE | {"algorithm_type": (*_SINGLE, "sde-dpmsolver")},
        _WITH_FLOW,
        pair=False,
    ),
    "DPMSolverSinglestepScheduler": Source(
        Family(extra=True, spaced=False, flow="dpm"),
        _SOLVER_TYPE | {"algorithm_type": _SINGLE},
        _WITH_FLOW,
        pair=False,
    ),
    "DDIMInverseScheduler": Source(Family(), {"timestep_spacing": ("leading", "trailing")}),
    "DPMSolverMultistepInverseScheduler": Source(
        Family(extra=True, kept=True),
        _SOLVER_TYPE
        | {"algorithm_type": ("dpmsolver++", "dpmsolver"), "use_flow_sigmas": (False,)},
        pair=False,
    ),
    "UniPCMultistepScheduler": Source(
        Family(extra=True, flow="unipc"),
        {"solver_order": (1, 2, 3, 4), "solver_type": ("bh1", "bh2"), "solver_p": (None,)},
        _WITH_FLOW,
        pair=False,
        result="sample",
    ),
    "PNDMScheduler": Source(Family(), predictions=("epsilon", "v_prediction"), pair=False),
    "LCMScheduler": Source(Family()),
    "EulerDiscreteScheduler": Source(
        _SIGMA,
        {
            "timestep_type": ("discrete", "continuous"),
            "interpolation_type": ("linear", "log_linear"),
        },
        result="output",
    ),
    "EulerAncestralDiscreteScheduler": Source(
        _SIGMA, predictions=("epsilon", "v_prediction"), result="output"
    ),
    "HeunDiscreteScheduler": Source(_SIGMA, calls=2),
    "KDPM2DiscreteScheduler": Source(_SIGMA, predictions=("epsilon", "v_prediction"), calls=2),
    "KDPM2AncestralDiscreteScheduler": Source(
        _SIGMA, predictions=("epsilon", "v_prediction"), calls=2
    ),
    "DEISMultistepScheduler": Source(
        Family(extra=True, flow="dpm", kept=True),
        {"solver_order": (1, 2, 3), "solver_type": ("logrho",), "algorithm_type": ("deis",)},
        _WITH_FLOW,
        pair=False,
    ),
    "LMSDiscreteScheduler": Source(_SIGMA),
    "DPMSolverSDEScheduler": Source(_SIGMA, predictions=("epsilon", "v_prediction"), calls=2),
    "TCDScheduler": Source(Family(), pair=False),
    "EDMEulerScheduler": Source(_SIGMA, predictions=("epsilon", "v_prediction"), result="output"),
    "EDMDPMSolverMultistepScheduler": Source(
        _SIGMA,
        _SOLVER_TYPE | {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++")},
        predictions=("epsilon", "v_prediction"),
        pair=False,
    ),
    COSINE: Source(
        _SIGMA,
        _SOLVER_TYPE | {"solver_order": (1, 2)},
        predictions=("epsilon", "v_prediction"),
        pair=False,
    ),
    "CMStochasticIterativeScheduler": Source(_SIGMA, predictions=(), pair=False),
    SCM: Source(Family("trig", whole=False), predictions=("trigflow",), result="noise"),
    "FlowMatchHeunDiscreteScheduler": Source(
        Family("flow", whole=False, flow="match", apart=True),
        predictions=(),
        pair=False,
        calls=2,
        result="output",
    ),
    "FlowMatchLCMScheduler": Source(
        Family("flow", whole=False, flow="match", apart=True),
        {"invert_sigmas": (False,)},
        predictions=(),
        pair=False,
        result="output",
    ),
    "IPNDMScheduler": Source(Family("trig", whole=False), predictions=(), pair=False),
    "LTXEulerAncestralRFScheduler": Source(
        Family("flow", whole=False, flow="match", apart=True),
        {"invert_sigmas": (False,)},
        predictions=(),
        pair=False,
        result="sample",
    ),
    "SASolverScheduler": Source(
        Family(extra=True, flow="dpm", kept=True),
        {
            "predictor_order": (1, 2, 3, 4),
            "corrector_order": (1, 2, 3, 4),
            "algorithm_type": ("data_prediction", "noise_prediction"),
        },
        _WITH_FLOW,
        pair=False,
        result="sample",
    ),
    "FlowMatchEulerDiscreteScheduler": Source(
        Family("flow", whole=False, flow="match"), predictions=(), pair=False, result="output"
    ),
}
# (who lays out the grid of a class, by options that stand in its config where they are not at their
# defaults; the class's own options)
GRID_OF = {
    "LTXEulerAncestralRFScheduler": (
        "FlowMatchEulerDiscreteScheduler",
        ("num_train_timesteps", "eta", "s_noise"),
    )
}
# their add_noise goes by timesteps alone
UNINDEXED = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "SASolverScheduler",
    "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler",
    UNCLIP,
    WUERSTCHEN,
    COGVIDEOX,
)
# they have the words of BOUNDS and do not read them
UNBOUNDED = ("TCDScheduler", COGVIDEOX)
# the eta of a step where nobody says one, of those that have any
ETA = {"DDIMScheduler": 0.0, "TCDScheduler": 0.3}
# they step without set_timesteps, through every training timestep
UNTIMED = (
    "DDPMScheduler",
    UNCLIP,
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverSDEScheduler",
    "EDMEulerScheduler",
    "CMStochasticIterativeScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "IPNDMScheduler",
)
# they do not step, and as diffusers has it they scale a model's input there all the same
SCALING = ("EDMDPMSolverMultistepScheduler", COSINE)
# a flow of a class that has none of its own, where nobody says otherwise as FlowMatchEuler has it
FLOW = {"shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential"}
# what pipelines find mu by, wherever a config has it
SHIFTED_BY = {
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
# what is done to predicted data, each with what belongs to it where it is on
BOUNDS = {
    "clip_sample": {"clip_sample_range": 1.0},
    "thresholding": {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0},
}
BOUNDING = frozenset(BOUNDS).union(*BOUNDS.values())
# what an FsScheduler's config says beside its source's
OURS = frozenset({"source", "compat", "plan"})
# classes that are another one with a method more, which no plan has
SAME = {"DDIMParallelScheduler": "DDIMScheduler", "DDPMParallelScheduler": "DDPMScheduler"}
# classes on whose noise schedule, as on their own, one of SOURCES runs
CLOSEST = {
    **SAME,
    "CogVideoXDPMScheduler": "DPMSolverMultistepScheduler",
    "RePaintScheduler": "DDIMScheduler",
}


def find(source: str) -> Source:
    """The entry of a diffusers class, or a ValueError that names the closest one."""
    if not isinstance(source, str):
        raise TypeError(
            f"FsScheduler: source is {source!r:.60}; the name of a diffusers class is accepted"
        )
    if source in SOURCES:
        return SOURCES[source]
    if source in CLOSEST:
        raise not_reproduced(source, CLOSEST[source])
    raise ValueError(
        f"FsScheduler: {source} is not reproduced, nor is a class that runs on its noise schedule; "
        f"one of {', '.join(SOURCES)}, or a plan for this model by from_plan, is accepted"
    )


def not_reproduced(name: str, closest: str) -> ValueError:
    return ValueError(
        f"FsScheduler: {name} is not reproduced; from_config with source={closest!r}, which runs "
        "on its noise schedule, is accepted"
    )


def settings(source: str, config: dict) -> dict:
    """The config as the class reads it (names of its sisters' options turned into its own), or a
    ValueError for what is not reproduced.
    """
    found, config = find(source), dict(config)
    for key, ours in SISTERS.get(source, SISTER).items():
        if config.get(key) in ours:
            config[key] = ours[config[key]]
    for key, accepted in found.only.items():
        if config[key] not in accepted:
            words = " or ".join(map(repr, accepted))
            raise ValueError(
                f"FsScheduler: {key} = {config[key]!r} of {source} is not reproduced; {words} is "
                "accepted"
            )
    check_words(config)
    size, where = config.get("num_train_timesteps", 1), scale(source, config)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 100_000:
        raise ValueError(
            f"FsScheduler: num_train_timesteps = {size!r}; a whole number from 1 to 100000 is "
            "accepted"
        )
    if where == "flow":
        config = config if found.family.flow else FLOW | config
        _check_spacing(flow_of(source, config), config)
    kinds = kinds_of(source, config)
    if kinds and config["prediction_type"] not in kinds:
        raise ValueError(
            f"FsScheduler: prediction_type = {config['prediction_type']!r} on {where} scale; "
            f"{' or '.join(kinds)} is accepted"
        )
    check_numbers(config)
    if where != "flow" and "beta_schedule" in config:
        noise_schedule(config)
    return config


def kinds_of(source: str, config: dict) -> list[str]:
    """The values of prediction_type that a class takes with this config; none where it has no such
    option.
    """
    found, flow = find(source), scale(source, config) == "flow"
    kinds = [k for k in found.predictions if k != "flow_prediction"]
    if found.predictions and flow:
        kinds = [k for k in (*kinds, "flow_prediction") if k != "v_prediction"]
    return [k for k in kinds if not (k == "sample" and "sigma_data" in config)]


def _check_spacing(flow: str, config: dict) -> None:
    """ValueError for sigmas spaced in a way that these flow sigmas cannot be."""
    for key in CONVERSIONS:
        if config.get(key) and not (flow == "match" or (flow == "unipc" and "karras" in key)):
            raise ValueError(
                f"FsScheduler: {key}=True with use_flow_sigmas=True; one of the two is accepted"
            )


def flow_of(name: str, config: Mapping) -> str:
    """Which flow sigmas a class has (`grids.Family`): one that has none of its own those of the
    class that it was moved from, or FlowMatchEuler's.
    """
    own = SOURCES[name].family.flow if name in SOURCES else ""
    return own or config.get("flow_sigmas", "match")


def scale(source: str, config: dict) -> str:
    """vp, sigma or flow: what the state is (see `grids`); trig: a circle's point, of no table
    (`ipndm`, `scm`, `wuerstchen`).
    """
    family = find(source).family
    if "sigma_data" in config and family.scale != "trig":  # EDM's (`edm`)
        return "sigma"
    return "flow" if config.get("use_flow_sigmas") else family.scale


def output_sign(where: str, config: dict) -> float:
    """-1 where the model's output is the negative of the plan's prediction: v on sigma scale is -F
    of EDM with sigma_data = 1.
    """
    return -1.0 if where == "sigma" and config.get("prediction_type") == "v_prediction" else 1.0


def is_sde(config: Mapping) -> bool:
    """Do its options ask for an SDE's steps?"""
    kind = str(config.get("algorithm_type", ""))
    return kind.startswith("sde") or bool(config.get("stochastic_sampling"))


def draws_wide(source: str, config: Mapping) -> bool:
    """Are its noises float32, whatever the model's output is?"""
    own = ("FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler", SCM)
    return source in own or is_sde(config)
