"""Plans in LeRobot's flow policies (pi0, pi05, smolvla, eo1), which call

    euler_integrate(denoise_fn, noise, num_steps, *, rtc_processor, rtc_enabled, ...) -> actions

by that name of their own module (written for LeRobot 0.6.1; hard_prefix is of its main branch).
The flow runs from t = 1, noise, to t = 0, actions:

    x_t = t·noise + (1 - t)·actions        denoise_fn(x_t, t [B]) -> v_t = noise - actions

    from lerobot.policies.pi0 import modeling_pi0
    with lerobot.recorded(modeling_pi0) as seen:
        for observation in observations:
            policy.predict_action_chunk(observation)
    search = fs.optimize.search(seen.model, seen.noise, [5], cond=seen.cond)
    lerobot.install(modeling_pi0, search.plans[5])
    policy.config.num_inference_steps = 5
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from ..model import Model
from ..plan import Plan
from ..plan.given import integer
from ..runtime import arguments, outputs
from ..schedules import Flow
from ..solvers import euler
from .velocity import Rows

NAME = "euler_integrate"
KEPT = 64  # step counts whose Euler rows are kept
_euler: dict[int, Rows] = {}


def integrator(plan: Plan | None = None) -> Integrator:
    """The hook for a plan: called as LeRobot's function is, pickled and copied by its plan, taken
    by torch.compile into one graph (without a plan from a second call of as many steps on).

    plan: from noise, of one model, on any shift of `schedules.Flow`, with prediction "flow" and
    time=1; it may draw noise, which torch's generator then makes. num_steps has to be the plan's
    number of evaluations, for a policy's config says it. None: LeRobot's own Euler steps, with its
    bits, for any num_steps; those of half precision noise are taken in float32, not rounded each.
    Raises TypeError or ValueError, one sentence, for another plan.
    """
    return euler_integrate if plan is None else Integrator(plan)


class Integrator:
    """What `integrator` makes of a plan."""

    def __init__(self, plan: Plan | None) -> None:
        self.plan = plan
        self._rows = None if plan is None else Rows("integrator", plan)

    def __reduce__(self) -> str | tuple:
        return NAME if self.plan is None else (Integrator, (self.plan,))

    def __call__(
        self,
        denoise_fn: Callable[[Tensor, Tensor], Tensor],
        noise: Tensor,
        num_steps: int,
        *,
        rtc_processor=None,
        rtc_enabled: bool = False,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
        hard_prefix: Tensor | None = None,
        hard_prefix_mask: Tensor | None = None,
    ) -> Tensor:
        """Actions [B,*] of noise's dtype, from noise [B,*] at t = 1.

        denoise_fn: asked v(x_t, t) at the plan's own times, t float32 [B].
        rtc_processor: where rtc_enabled the velocity comes of its denoise_step, told the time that
        the row's x_t stands at, whatever the solver; where it is debugging, every row is tracked.
        inference_delay, prev_chunk_left_over, execution_horizon: handed on to it.
        hard_prefix [B,T,*]: clean actions that stand where hard_prefix_mask [B,T,1] is true, before
        the model is asked (its t is 0 there, [B,T] in all) and in the end.
        Raises TypeError or ValueError, one sentence; FloatingPointError for actions that are not
        finite, where neither torch.compile nor gradients record the operations.
        """
        _check(denoise_fn, noise, rtc_processor, rtc_enabled, hard_prefix, hard_prefix_mask)
        steps = self._rows or _euler_rows(num_steps)
        _fits(steps, num_steps)
        words = {
            "prev_chunk_left_over": prev_chunk_left_over,
            "inference_delay": inference_delay,
            "execution_horizon": execution_horizon,
        }
        guide = (
            (lambda **asked: rtc_processor.denoise_step(**asked, **words)) if rtc_enabled else None
        )
        loop = Loop(denoise_fn, steps.times, guide, rtc_processor, hard_prefix, hard_prefix_mask)
        return loop.ended(steps.run(NAME, noise, loop.ask).to(noise.dtype))


euler_integrate = Integrator(None)


class Loop:
    """What is done around the model of one call of the hook."""

    def __init__(self, denoise_fn, times, guide, processor, prefix, mask) -> None:
        self.denoise_fn, self.times, self.guide = denoise_fn, times, guide
        self.prefix, self.mask = prefix, mask
        debugged = processor is not None and processor.is_debug_enabled()
        self.track, self.before = processor.track if debugged else None, None

    def ask(self, x: Tensor, t: Tensor, row: int) -> Tensor:
        """The velocity at a row."""
        x = self._told(x)
        if self.prefix is not None:
            t = t[:, None].expand(-1, x.shape[1]).masked_fill(self.mask[..., 0], 0.0)
        velocity = lambda input_x_t, current_timestep=t: self.denoise_fn(
            input_x_t, current_timestep
        )
        time = self.times[row]
        if self.guide is None:
            v = velocity(x)
        else:
            v = self.guide(x_t=x, time=time, original_denoise_step_partial=velocity)
        v = outputs.only(v)
        if self.before is None or not isinstance(v, Tensor):  # later rows' are like the first
            of = "denoise_fn" if self.guide is None else "rtc_processor.denoise_step"
            _refuse_unlike(v, x, of)
        self.before = time, v
        return v if torch.is_grad_enabled() else v.detach()

    def ended(self, x: Tensor) -> Tensor:
        return self._told(x)

    def _told(self, x: Tensor) -> Tensor:
        """x_t as a model or a caller sees it, which is told to who debugs the row before."""
        if self.prefix is not None:
            x = torch.where(self.mask, self.prefix.to(x.dtype), x)
        if self.track is not None and self.before is not None:
            time, v = self.before
            self.track(time=time, x_t=x, v_t=v)
        return x


def _euler_rows(num_steps: int) -> Rows:
    """LeRobot's own steps."""
    known = isinstance(num_steps, int) and num_steps in _euler
    return _euler[num_steps] if known else _made(num_steps)


@torch.compiler.disable
def _made(num_steps: int) -> Rows:
    """Rows of Euler at times 1 + k·(-1/n), the last one's end exactly 0."""
    n = integer(num_steps)
    if n is None or n < 1:
        raise ValueError(
            f"{NAME}: num_steps is {num_steps!r:.60}; a whole number of at least 1 is accepted"
        )
    h = -1.0 / n
    grid = [*(1.0 + k * h for k in range(n)), 0.0]
    own = Rows(NAME, euler(Model(None, schedule=Flow(), prediction="flow", time=1), grid))
    if len(_euler) >= KEPT:
        _euler.clear()
    _euler[n] = own
    return own


def _refuse_unlike(v: object, x: Tensor, of: str) -> None:
    """TypeError for an answer that is none to x: of another shape, device or layout, or in a dtype
    that x's does not hold to the bit.
    """
    dense = isinstance(v, Tensor) and v.layout == torch.strided
    exact = dense and (v.dtype == x.dtype or v.dtype in outputs.EXACT.get(x.dtype, ()))
    if exact and v.shape == x.shape and v.device == x.device:
        return
    raise TypeError(
        f"{NAME}: {of} returned {_words(v)} for an x_t of {_words(x)}; a "
        "velocity like its x_t is accepted"
    )


def _fits(own: Rows, num_steps: object) -> None:
    """ValueError where num_steps is not the plan's number of evaluations."""
    if (num_steps if type(num_steps) is int else integer(num_steps)) != own.nfe:
        raise ValueError(
            f"{NAME}: num_steps is {num_steps!r:.60} and the plan has {own.nfe} evaluations; "
            f"{own.nfe}, which the policy's config says, is accepted"
        )


def _check(denoise_fn, noise, processor, enabled: bool, prefix, mask) -> None:
    """TypeError or ValueError for anything a caller brought that cannot be run."""
    if not callable(denoise_fn):
        raise TypeError(
            f"{NAME}: denoise_fn is a {type(denoise_fn).__name__}; a callable(x_t, t [B]) -> "
            "velocity is accepted"
        )
    dense = isinstance(noise, Tensor) and noise.layout == torch.strided and noise.dim() > 0
    if not dense or noise.dtype not in arguments.MODELS:
        what = f"{noise.dtype} {list(noise.shape)}" if dense else outputs.words(noise)
        raise TypeError(
            f"{NAME}: noise is {what}; a dense tensor [B, *] of float32, float64, bfloat16 or "
            "float16 is accepted"
        )
    words = ("is_debug_enabled", "track", "denoise_step")
    if processor is not None and not all(hasattr(processor, word) for word in words):
        raise TypeError(
            f"{NAME}: rtc_processor is a {type(processor).__name__}; an object with "
            f"{', '.join(words)}, as LeRobot's RTCProcessor, is accepted"
        )
    if enabled and processor is None:
        raise ValueError(
            f"{NAME}: rtc_enabled without rtc_processor; both, or neither, is accepted"
        )
    if (prefix is None) != (mask is None):
        raise ValueError(
            f"{NAME}: hard_prefix or hard_prefix_mask is given without the other; both are accepted"
        )
    if mask is not None and not _stands(prefix, mask, noise):
        said = " and hard_prefix_mask ".join(_words(v) for v in (prefix, mask))
        raise ValueError(
            f"{NAME}: hard_prefix is {said} for noise {_words(noise)}; actions of its shape, and "
            "bool [B, T, 1], there are accepted"
        )


def _stands(prefix: object, mask: object, noise: Tensor) -> bool:
    """May a prefix stand in this noise where the mask says so?"""
    if not (isinstance(prefix, Tensor) and isinstance(mask, Tensor) and noise.dim() == 3):
        return False
    fits = lambda v: (
        v.dim() == noise.dim()
        and v.device == noise.device
        and all(own in (1, n) for own, n in zip(v.shape, noise.shape, strict=True))
    )
    kinds = prefix.is_floating_point() and mask.dtype == torch.bool
    return kinds and fits(prefix) and fits(mask) and mask.shape[-1] == 1


def _words(v: object) -> str:
    if isinstance(v, Tensor):
        layout = "" if v.layout == torch.strided else f" ({v.layout})"
        return f"{v.dtype} {list(v.shape)} on {v.device}{layout}"
    return outputs.words(v)


def install(policy_module: ModuleType, plan: Plan | None) -> Callable[[], None]:
    """Put the plan in place of the euler_integrate that a policy's module has imported, e.g.
    lerobot.policies.pi0.modeling_pi0; every policy of that module runs it from then on. Before
    sample_actions is compiled. Returns a function that puts back what was there.

    Raises TypeError or ValueError, one sentence, for a module whose loop cannot be reached so:
    LeRobot 0.4 has it inside sample_actions, and the module that defines the hook is asked by none.
    """
    theirs, ours = _hook("install", policy_module), integrator(plan)
    unknown = [*inspect.signature(theirs).parameters.keys() - inspect.signature(ours).parameters]
    if unknown:
        raise ValueError(
            f"install: {policy_module.__name__}.{NAME} takes {min(unknown)}, which no plan does; "
            "the hook of LeRobot 0.6 is accepted"
        )
    setattr(policy_module, NAME, ours)
    return lambda: setattr(policy_module, NAME, theirs)


def _hook(where: str, module: object) -> Callable:
    """The euler_integrate that the module has imported."""
    hook = getattr(module, NAME, None)
    name = getattr(module, "__name__", type(module).__name__)
    if not isinstance(module, ModuleType) or not callable(hook):
        raise TypeError(
            f"{where}: {name!r:.80} has no {NAME}; the module of a policy that imports it, such as "
            "lerobot.policies.pi0.modeling_pi0 of LeRobot 0.6, is accepted"
        )
    if getattr(hook, "__module__", None) == name:
        raise ValueError(
            f"{where}: {name} defines {NAME}, and policies call it by their own modules' name; "
            "such a module, lerobot.policies.pi0.modeling_pi0, is accepted"
        )
    return hook


class Recorded:
    """A policy as a model to search: what its own calls asked.

    model: v(x [B,*], t [B], sample [B]) on `schedules.Flow()`, each row answered by the denoise_fn
    of the call that its sample came in.  noise [N,*]: what the calls began with.  cond: the sample
    numbers 0..N-1, for `fs.optimize.search(model, noise, ..., cond=cond)`.
    A sample of a call of b samples is answered by a batch of b; so record calls of one.
    """

    def __init__(self) -> None:
        self._asks: list[tuple[Callable, int, int]] = []  # denoise_fn, samples of its call, which
        self._noises: list[Tensor] = []
        self.model = Model(self._velocity, schedule=Flow(), prediction="flow", time=1)

    def add(self, denoise_fn: Callable, noise: Tensor) -> None:
        self._asks += [(denoise_fn, len(noise), k) for k in range(len(noise))]
        self._noises.append(noise.detach().clone())

    @property
    def noise(self) -> Tensor:
        if not self._noises:
            raise ValueError(
                "recorded: the policy was not asked for actions; calls of its predict_action_chunk "
                "inside the with block are accepted"
            )
        first, *others = self._noises
        kind = lambda v: (v.shape[1:], v.dtype, v.device)
        for other in others:
            if kind(other) != kind(first):
                raise ValueError(
                    f"recorded: one call began with noise {_words(first)} and another with "
                    f"{_words(other)}; chunks of one shape, dtype and device are accepted"
                )
        return torch.cat(self._noises)

    @property
    def cond(self) -> dict[str, Tensor]:
        return {"sample": torch.arange(len(self._asks), device=self.noise.device)}

    def _velocity(self, x: Tensor, t: Tensor, sample: Tensor) -> Tensor:
        answers = []
        for one, told, number in zip(x.split(1), t.split(1), sample.tolist(), strict=True):
            denoise_fn, size, own = self._asks[number]
            v = denoise_fn(one.repeat_interleave(size, 0), told.float().expand(size))
            answers.append(v[own : own + 1])
        return torch.cat(answers)


@contextmanager
def recorded(policy_module: ModuleType) -> Iterator[Recorded]:
    """While it is open, the policies of a module go on as they do, and what they ask is kept: what
    denoise_fn holds, such as the cache of a prefix, with it. Raises as `install` does.
    """
    theirs, seen = _hook("recorded", policy_module), Recorded()

    def hook(denoise_fn, noise, *others, **words):
        seen.add(denoise_fn, noise)
        return theirs(denoise_fn, noise, *others, **words)

    setattr(policy_module, NAME, hook)
    try:
        yield seen
    finally:
        setattr(policy_module, NAME, theirs)
