"""FsScheduler: a Plan behind the contract of a diffusers scheduler (set_timesteps, timesteps,
scale_model_input, step; diffusers 0.42).

    # the pipeline's own solver and grid: the same pictures
    pipe.scheduler = FsScheduler.from_config(pipe.scheduler)
    # a plan found for this model
    pipe.scheduler = FsScheduler.from_plan(fs.Plan.load("mine.fsplan"))

Only this file and `output` import diffusers.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ... import caller
from ...kernels.transforms import beneath
from ...plan import Plan
from ...plan.given import plain
from ...plan.provenance import agree
from .answers import Answers
from .calls import AsSource, check_others, check_step
from .config import MATCH, trained
from .grids import listed
from .kin import Kin
from .loop import Loop
from .loops import Loops, too_early
from .manners import with_clipped
from .moving import arguments, beside, closest
from .noised import jumped
from .noising import Noising
from .options import defaults, own_config
from .output import FsSchedulerOutput
from .outside import Outside
from .peer import uncovered
from .plan import checked_plan, decoded, scale_of
from .readings import Readings
from .runs import runs_of
from .saving import Saving, options_of, told
from .sources import (
    COSINE,
    ETA,
    OURS,
    PREDICTIONS,
    SCALING,
    SOURCES,
    UNCLIP,
    UNTIMED,
    draws_wide,
    output_sign,
    scale,
    settings,
)
from .standing import check_table, shift_since
from .tokens import by_token

if TYPE_CHECKING:  # diffusers' own has no types, and would take the constructor's away
    Init = TypeVar("Init", bound=Callable)

    def register_to_config(init: Init) -> Init: ...
else:
    from diffusers.configuration_utils import register_to_config


class FsScheduler(Kin, Saving, Readings, Noising, Answers, Outside, SchedulerMixin, ConfigMixin):
    """A diffusers scheduler that runs a fastsample Plan.

    source: the diffusers class whose solver, grid and state it takes over
    (`sources.SOURCES`); every other argument is that class's own. Defaults are
    DPMSolverMultistepScheduler's where classes differ, so prefer from_config. compat: "diffusers"
    for that class's own grid (float32 levels, rounded labels, init_noise_sigma) and its deviations,
    None for exact ones; "auto", the default, becomes "diffusers", or with a warning None where that
    cannot be reproduced (a single run that cannot be is exact, with a warning). plan: a Plan as
    base64 text, in place of all that (from_plan). moved: what from_config brought along from
    another class and the source has no option for (`moving`).

    step and set_timesteps take their arguments in the order of the source's own, as
    inspect.signature says; eta, generator and variance_noise, timesteps and sigmas are taken by
    name from every source.

    The state is float32 whatever the sample's dtype, see `loop`. eta is DDIM's and TCD's, of
    step(); other sources ignore it, as in diffusers. Noise is drawn as there: torch.randn from
    `generator`, or torch's own generator without one. A thread that calls set_timesteps has a loop
    of its own; one that never did is given the only loop there is, or a ValueError. A deep copy
    shares config, plans and tables, and schedulers of one config share what they compiled. Before
    set_timesteps it says and does what the source does there (`outside`). Raises ValueError,
    TypeError or IndexError, one sentence, for whatever it cannot do.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        *,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        source: str = "DPMSolverMultistepScheduler",
        compat: str | None = "auto",
        plan: str | None = None,
        solver_order: int = 2,
        predictor_order: int = 2,
        corrector_order: int = 2,
        tau_func: Callable | None = None,
        noise_sampler_seed: int | None = None,
        eta: float = 1.0,
        s_noise: float = 1.0,
        sigma_data: float | None = None,
        sigma_schedule: str = "karras",
        rho: float = 7.0,
        clip_denoised: bool = True,
        snr_shift_scale: float = 3.0,
        scaler: float = 1.0,
        s: float = 0.008,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        predict_x0: bool = True,
        solver_p: object = None,
        disable_corrector: list[int] = [],  # noqa: B006 (diffusers' own default; never written to)
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -math.inf,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        variance_type: str | None = None,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        set_alpha_to_one: bool = True,
        interpolation_type: str = "linear",
        timestep_type: str = "discrete",
        original_inference_steps: int = 50,
        timestep_scaling: float = 10.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        skip_prk_steps: bool = False,
        moved: dict | None = None,
    ):
        self._take(source, compat, plan)

    # -- from something else -----------------------------------------------------------------------
    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        """From any diffusers scheduler, or its config (or an FsScheduler's). source=, a class or
        its name, puts another class's solver on the same noise schedule (`moving`).
        """
        kind, shift = type(config) if isinstance(config, SchedulerMixin) else None, None
        if kind:
            check_table(config)
            kwargs, shift = shift_since(config, kwargs)
            config = config.config
        if not isinstance(config, dict):
            raise TypeError(
                f"FsScheduler.from_config: a {type(config).__name__} was given; a scheduler or its "
                "config is accepted"
            )
        if config.get("plan") and config.keys() >= OURS:
            return super().from_config(config, return_unused_kwargs, **kwargs)
        own = options_of(cls)
        words, kept, left = arguments(diffusers, own, config, kind, kwargs)
        if left and not return_unused_kwargs:
            raise TypeError(
                f"FsScheduler.from_config: {', '.join(left)}: not known to {words['source']}; its "
                "own options are accepted"
            )
        made = cls(**words)
        made.register_to_config(**told(cls, config, kept))
        if shift is not None:
            made.set_shift(shift)
        return (made, left) if return_unused_kwargs else made

    @classmethod
    def from_plan(cls, plan: Plan, num_train_timesteps: int = 1000, like=None) -> FsScheduler:
        """A scheduler that runs this plan, in as many steps as it has. The plan is kept in the
        config, so save_pretrained keeps it. like: the pipeline's own scheduler, or its config, of
        any class whose noise schedule `moving` reads: a plan made for another schedule, shift or
        prediction than it says is refused.

        `timesteps`, `sigmas` and `mu` of set_timesteps then only have to have the plan's length:
        the plan is the schedule. Guidance is the pipeline's: plans with branches are refused. Flow
        plans report use_flow_sigmas, so that pipelines leave sigmas to the scheduler.
        """
        text = base64.b64encode(checked_plan(plan).to_bytes()).decode()
        if like is not None:
            peer = cls.from_config(like, compat=None, source=closest(like))
            num_train_timesteps = peer.config.num_train_timesteps
            words = trained(peer.config.source, peer._settings, plan)
            agree("FsScheduler.from_plan", plan, [words])
        theirs = {ours: kind for kind, ours in PREDICTIONS.items()}
        return cls(
            num_train_timesteps=num_train_timesteps,
            prediction_type=theirs.get(str(plan.note.get("prediction")), "epsilon"),
            use_flow_sigmas=scale_of(plan) == "flow",
            plan=text,
        )

    # -- the contract ------------------------------------------------------------------------------
    @partial(AsSource, only_exact=("timesteps", "sigmas"))
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device=None,
        timesteps: list | None = None,
        sigmas: list | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        **others,
    ) -> None:
        """Compile the plan and start this thread's loop.

        timesteps [n] or sigmas for every source: sigma/alpha, the level the run ends at included,
        [n+1]; on flow scale sigma before the shift, [n]. mu: the dynamic shift of flow schedules;
        original_inference_steps: LCM's; others: what else the source's own takes.
        """
        if self._seen is not self._internal_dict:
            self._read()
        last = self.config.get("num_train_timesteps", 2) - (self._scale != "flow")
        lists = (listed(v, top) for v, top in ((timesteps, last), (sigmas, math.inf)))
        steps, mu, original = map(plain, (num_inference_steps, mu, original_inference_steps))
        asked = (steps, *lists, mu, original, tuple(others.items()))
        compat = self.config.compat is not None
        with beneath():
            made = self._runs.kept(asked, compat)
            made = made or self._runs.made(asked, compat, self._auto, **self._about())
            loop = made.fresh(device)
        loop.asked = asked
        self._owned().set(loop)

    def scale_model_input(self, sample: Tensor, timestep=None) -> Tensor:
        """c·sample: what the model is asked with at the timestep; the sample itself where c = 1."""
        loop = self._loops.get("scale_model_input", self._untimed)
        c = 1.0 if loop is None else loop.input_scale(timestep)
        return sample if c == 1.0 else sample * c

    @AsSource
    def step(
        self,
        model_output: Tensor,
        timestep,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        eta: float | None = None,
        per_token_timesteps: Tensor | None = None,
        **others,
    ) -> FsSchedulerOutput | tuple:
        """One step: [B,*] in, [B,*] out in the sample's dtype.

        timestep: the next of `timesteps`. variance_noise: in place of a draw. others: what else the
        source's own takes (`step_options`), or that changes nothing. per_token_timesteps: see
        `tokens`, with the other sign of the output; not FlowMatchEuler's, all at the timestep.

        Where sample or model_output requires grad, this step and the rest of the run are made of
        torch operators, and gradients pass through them and the history. The output says what a
        step that draws drew from (`FsSchedulerOutput`).
        """
        loops = self._owned() if self._loops.shared else self._loops
        loop = loops.get("step", self._untimed)
        if eta is None:
            eta = self._eta or 0.0
        if eta.__class__ is not float or generator is not None or variance_noise is not None:
            eta = check_step(eta, generator, variance_noise)
        options = 0.0
        if others:
            options = check_others(others, self.config.source)
            told = model_output, timestep, sample
            model_output = with_clipped(others, loop, self.config.source, self._settings, *told)
        noise = self._noise
        if self._altered or per_token_timesteps is not None:
            if per_token_timesteps is not None and self.config.source == MATCH:
                draw = partial(self._noise, model_output, generator, variance_noise)
                words = model_output, timestep, sample, per_token_timesteps, draw
                sample, moments = by_token(loop, self._settings, *words)
                return FsSchedulerOutput(sample, None, moments) if return_dict else (sample,)
            noise = self._drawing(loop, model_output, timestep, sample, others)
            model_output = self._prediction(model_output, timestep, sample, per_token_timesteps)
        eta = options if self._eta is None else eta
        x, data = loop.step(model_output, timestep, sample, eta, noise, generator, variance_noise)
        lower = jumped(loop, eta, model_output, sample) if self._jumps else None
        if return_dict:
            return FsSchedulerOutput(x, data, loop.moments, lower)
        data = lower if data is None else data
        return (x,) if data is None else (x, data)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # -- inside ------------------------------------------------------------------------------------
    def _take(self, source: str, compat: str | None, plan: str | None) -> None:
        """What __init__ does with a config that has been registered."""
        if compat not in ("auto", None, "diffusers") or (plan and compat == "diffusers"):
            accepted = "a plan is exact, None" if plan else "'auto', None or 'diffusers'"
            raise ValueError(f"FsScheduler: compat = {compat!r}; {accepted} is accepted")
        kind = self.config.prediction_type
        self._given = None if plan is None else checked_plan(decoded(plan, kind))
        if not plan:
            self._internal_dict = FrozenDict(own_config(self.config, defaults(diffusers, source)))
        self._loops, self._auto = Loops(), compat == "auto"
        self._read()
        if self._auto:
            why = (
                None if plan else uncovered(self._source, self._settings, lambda: self._runs.table)
            )
            self.register_to_config(compat=None if plan or why else "diffusers")
            if why:
                caller.warn(f"{why}; every run is exact instead, as with compat=None")

    def _read(self) -> None:
        """The config as it stands. Pipelines put another in its place (steps_offset, clip_sample),
        and so does register_to_config.
        """
        seen, was = self._internal_dict, self.__dict__.get("_said", {})
        told = {k: v for k, v in seen.items() if k != "compat" and k[:1] != "_"}
        if was.keys() == told.keys() and all(v is was[k] for k, v in told.items()):
            self._seen, self._said = seen, told
            return
        source, plan = self.config.source, self._given
        usual = {} if plan else defaults(diffusers, source)
        read = {k: self.config.get(k, v) for k, v in usual.items()} | beside(
            source, usual, self.config.get("moved")
        )
        self._settings = {} if plan else settings(source, read)
        self._source = None if plan else getattr(diffusers, source)
        self._scale = scale_of(plan) if plan else scale(source, self._settings)
        self._eta = None if plan else ETA.get(source)
        self._wide = draws_wide(source, self._settings)
        self._learned = str(self._settings.get("variance_type")).startswith("learned")
        self._negative = plan is None and output_sign(self._scale, self._settings) < 0
        self._jumps = source == "TCDScheduler" and plan is None
        self._paths = plan is None and source in ("DPMSolverSDEScheduler", COSINE)
        self._altered = self._learned or self._negative or self._paths or source == UNCLIP
        shift = getattr(self.__dict__.get("_runs"), "shift", None)
        self._runs = runs_of(self._source, self._settings, plan, shift)
        self._seen, self._said = seen, told

    def _about(self) -> dict:
        """What a Loop is told of the source."""
        pair = self._source is None or SOURCES[self.config.source].pair
        return {"calls_per_point": self.order, "preview": pair, "unit": self._scale == "flow"}

    def _untimed(self, what: str) -> Loop | None:
        """A loop before set_timesteps, where the source's own steps there; None to scale a model
        input that is not scaled.
        """
        if what != "step" and self._source is not None and self._scale != "sigma":
            return None
        known = UNTIMED + SCALING if self.config.compat and what != "step" else UNTIMED
        if self._source is None or self.config.source not in known:
            raise too_early(what)
        loop = self._runs.training(self.config.compat is not None, **self._about()).fresh()
        loop.begin = self._begin
        return loop

    def _noise(self, output: Tensor, generator, given: Tensor | None) -> Tensor:
        """One draw for a step with this model output, of the dtype that the source's has; or the
        one given.
        """
        if given is not None:
            return given
        kind = torch.float32 if self._wide else output.dtype
        return randn_tensor(output.shape, generator=generator, device=output.device, dtype=kind)
