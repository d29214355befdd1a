"""How a source's methods are called: by the signature of the diffusers class's own, which
inspect.signature answers with.

The classes order what follows `sample` each in its own way (generator first, or eta, s_churn,
return_dict), and so do their set_timesteps. Pipelines look there for eta, generator, timesteps and
sigmas.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache, wraps
from numbers import Real
from types import MethodType

import torch
from torch import Tensor

from ...plan.given import bits
from .lookup import ROUNDING, Lookup
from .plan import number
from .scm import ENDS
from .sources import UNCLIP
from .step_options import CHURN, OPTIONS, Told, told


class AsSource:
    """A method whose arguments stand where the source class's own has them, or where the function
    has them if there is no source.

    only_exact: keywords of ours that the signature lists behind the source's where the scheduler is
    exact. What is set on the scheduler under the method's name hides it, as it hides any method.
    """

    def __init__(self, function: Callable, only_exact: tuple[str, ...] = ()):
        self._function, self._only_exact, self.__doc__ = function, only_exact, function.__doc__
        # of every source met, so that a call makes nothing but a bound method
        self._methods: dict[object, Callable] = {None: function}

    def __get__(self, scheduler, owner=None) -> Callable:
        if scheduler is None:
            return self._function
        source = key = scheduler._source
        if source and self._only_exact:
            key = source, scheduler.config.compat is None
        method = self._methods.get(key)
        if method is None:
            extra = self._only_exact if key == (source, True) else ()
            method = self._methods[key] = _called_as(self._function, source, extra)
        return MethodType(method, scheduler)


def _called_as(function: Callable, source: type, extra: tuple[str, ...]) -> Callable:
    """The function under the signature of the source's method of that name."""
    own = inspect.signature(getattr(source, function.__name__))
    places, name = tuple(own.parameters)[1:], function.__name__
    ours = tuple(inspect.signature(function).parameters)[1:]
    ends = zip((*places, ""), (*ours, "."), strict=False)
    alike = next(k for k, (a, b) in enumerate(ends) if a != b)  # so many stand in one place

    @wraps(function)
    def method(self, *args, **given):
        if len(args) <= alike:
            return function(self, *args, **given)
        if len(args) > len(places):
            raise TypeError(
                f"FsScheduler.{name}: {len(args)} arguments by position; {source.__name__} takes "
                f"{', '.join(places)}"
            )
        for place, value in zip(places, args, strict=False):
            if place in given:
                raise TypeError(
                    f"FsScheduler.{name}: {place} was given twice; once, by position or by name, "
                    "is accepted"
                )
            given[place] = value
        return function(self, **given)

    more = [
        p.replace(kind=p.KEYWORD_ONLY)
        for p in inspect.signature(function).parameters.values()
        if p.name in set(extra) - set(places)
    ]
    method.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])
    return method


@cache
def takes(source: type) -> Mapping[str, inspect.Parameter]:
    """The parameters of the class's set_timesteps."""
    return inspect.signature(source.set_timesteps).parameters


def check_set_timesteps(source: type | None, others: dict, exact: bool) -> None:
    """TypeError for arguments that the source's set_timesteps does not know; exact: ValueError for
    its own not at their defaults.
    """
    known = {} if source is None else takes(source)
    for name, value in others.items():
        if name not in known:
            whose = "a plan" if source is None else source.__name__
            words = ", ".join([*known][1:]) or "a number of steps"
            raise TypeError(
                f"FsScheduler.set_timesteps: {name} is not known to {whose}; {words} is accepted"
            )
        if exact and value != known[name].default and name not in ENDS:
            raise ValueError(
                f"FsScheduler.set_timesteps: {name} = {value!r}; {known[name].default!r}, or "
                "compat='diffusers', is accepted"
            )


def check_together(source: type, settings: dict, asked: tuple) -> None:
    """ValueError for arguments of set_timesteps (`Runs.made`) that contradict each other, or that
    nothing of this source reads: in every mode, by what the class itself refuses.

    FlowMatchEuler takes a number, timesteps and sigmas of one length beside each other, UniPC a
    number and sigmas, SCM a number and timesteps; the first two take a mu without dynamic shifting,
    which pipelines give them. LTX reads of what stands beside each other the sigmas, else the
    timesteps.
    """
    steps, timesteps, sigmas, mu, original, others = asked
    name = source.__name__
    lists = {"num_inference_steps": steps, "timesteps": timesteps, "sigmas": sigmas}
    given = [key for key, value in lists.items() if value is not None]
    matched = name.startswith(("FlowMatch", "LTX", "SCM"))
    matched = matched or (name.startswith("UniPC") and timesteps is None)
    if len(given) > 1 and not matched:
        raise ValueError(
            f"FsScheduler.set_timesteps: {' beside '.join(given)} were given to {name}; one of "
            "them is accepted"
        )
    shifts = settings.get("use_dynamic_shifting")
    if mu is not None and (shifts is None or (name.startswith(("DPM", "DEIS")) and not shifts)):
        raise ValueError(
            f"FsScheduler.set_timesteps: mu = {mu!r:.40} and {name} shifts by none; None, or "
            "use_dynamic_shifting=True where the class has it, is accepted"
        )
    if original is not None and "original_inference_steps" not in settings:
        raise ValueError(
            f"FsScheduler.set_timesteps: original_inference_steps = {original!r:.40} and {name} "
            "was not distilled to any; None, or LCMScheduler, is accepted"
        )
    share = dict(others).get("strength")
    if share is not None and timesteps is not None and not len(timesteps) * share >= 1.0:
        raise ValueError(
            f"FsScheduler.set_timesteps: strength = {share!r:.40} leaves none of {len(timesteps)} "
            "timesteps; a share that leaves one is accepted"
        )


def check_step(eta, generator, variance_noise) -> float:
    """eta as a float; TypeError for one that is no number, and for a generator or a noise that is
    none: arguments out of place.
    """
    if generator is not None and not isinstance(generator, (torch.Generator, list, tuple)):
        raise TypeError(
            f"FsScheduler.step: generator is {_words(generator)}; a torch.Generator, a list of "
            "them or None is accepted"
        )
    if variance_noise is not None and not isinstance(variance_noise, Tensor):
        raise TypeError(
            f"FsScheduler.step: variance_noise is {_words(variance_noise)}; a tensor of the "
            "sample's shape or None is accepted"
        )
    if eta.__class__ is float:
        return eta
    scalar = isinstance(eta, Tensor) and eta.numel() == 1
    if isinstance(eta, bool) or not (isinstance(eta, Real) or scalar):
        raise TypeError(
            f"FsScheduler.step: eta is {_words(eta)}; a number is accepted, and a generator as "
            "generator="
        )
    return float(eta)


def check_others(others: dict, source: str) -> Told:
    """What else a class's step takes: at its default, or where it changes nothing, or what its rows
    are made with, which is returned (`step_options`); ValueError or TypeError otherwise.

    Nothing is changed by the settings of churn without churn, and by churn in FlowMatchEuler, which
    has none. use_clipped_model_output is taken elsewhere.
    """
    for name, value in others.items():
        if name not in NEUTRAL:
            raise TypeError(
                f"FsScheduler.step: {name} is not known; eta, generator, variance_noise, "
                "return_dict and what the source's own step takes are accepted"
            )
        idle = (name in CHURN and name != "s_churn") or (
            name == "s_churn" and source.startswith("FlowMatchEuler")
        )
        idle |= name == "use_clipped_model_output" and (value is True or value is False)
        if _is_generator(value):
            raise TypeError(
                f"FsScheduler.step: {name} is a Generator; {NEUTRAL[name]} is accepted, and a "
                "generator as generator="
            )
        if name in OPTIONS.get(source, ()) or (name == "prev_timestep" and source == UNCLIP):
            continue
        if value is not None and not idle and value != NEUTRAL[name]:
            raise ValueError(
                f"FsScheduler.step: {name} = {_words(value)} of {source} is not reproduced; "
                f"{NEUTRAL[name]} is accepted"
            )
    return told(source, others)


def check_tokens(per_token: Tensor, timestep) -> None:
    """Every token at the timestep, or a ValueError: a plan has one noise level for the whole
    sample.
    """
    at = float(timestep)
    if not isinstance(per_token, Tensor):
        raise TypeError(
            f"FsScheduler.step: per_token_timesteps is {_words(per_token)}; a tensor, or None, and "
            "generator= are accepted"
        )
    low, high = (float(v) for v in per_token.aminmax())
    kept = [k for k in (bits(per_token), bits(timestep)) if k is not None]
    off = max([ROUNDING, *(2.0**-k for k in kept)])
    if max(abs(low - at), abs(high - at)) > off * max(1.0, abs(at)):
        raise ValueError(
            f"FsScheduler.step: per_token_timesteps from {low:g} to {high:g} at timestep {at:g} "
            "are not reproduced; the timestep for every token is accepted"
        )


def check_end(loop: Lookup, timestep, given) -> None:
    """ValueError where UnCLIP's step is told to go elsewhere (given: its prev_timestep, None for
    the training timestep before) than to the next timestep of the run, or, from the last, to -1.
    """
    at = loop.find(timestep)
    if not 0 <= at < len(loop):
        return  # for the loop to refuse
    t = float(loop.timesteps[at])
    end = float(loop.timesteps[at + 1]) if at + 1 < len(loop) else -1.0
    if (t - 1.0 if given is None else number(given)) != end:
        raise ValueError(
            f"FsScheduler.step: prev_timestep = {given!r:.40} at timestep {t:g}, from which this "
            f"run goes on to {end:g}; that is accepted"
        )


# -- inside ----------------------------------------------------------------------------------------
NEUTRAL = {
    "use_clipped_model_output": False,
    **CHURN,
    "order": 4,  # LMS's
    "pred_original_sample": None,  # EDMEuler's
    "prev_timestep": None,  # UnCLIP's
}


def _is_generator(value) -> bool:
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, torch.Generator)


def _words(value) -> str:
    if isinstance(value, (Real, str)) or value is None:
        return f"{value!r:.40}"
    return f"a {type(value).__name__}"
