"""What an FsScheduler says and does apart from its steps: the source's tables and its functions of
them, before set_timesteps and after, and what foreign code may write to it. Imports no diffusers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

import torch

from ...plan import Plan
from .ipndm import NAME as IPNDM
from .loops import Loops
from .named import NAMED, Named
from .runs import Runs

# names of the classes that depend on the config and on their timesteps alone
TABLES = """
    betas alphas alphas_cumprod final_alpha_cumprod one alpha_t sigma_t lambda_t sigma_min sigma_max
    shift variance_type custom_timesteps use_karras_sigmas use_exponential_sigmas use_beta_sigmas
    pndm_order scaler s _init_alpha_cumprod
"""
FUNCTIONS = """
    _get_variance previous_timestep index_for_timestep time_shift _time_shift_exponential
    _time_shift_linear stretch_shift_to_terminal _sigma_to_t _sigma_to_alpha_sigma_t
    _threshold_sample convert_model_output get_scalings_for_boundary_condition_discrete
    get_scalings_for_boundary_condition get_scalings sigma_to_t
    get_order_list _convert_to_karras _convert_to_exponential _convert_to_beta _convert_to_lu
    _alpha_cumprod
"""
# what we do ourselves where the class has it
OURS = {"set_shift": "_set_shift", "get_velocity": "_velocity"}
OURS |= {name: f"_{name}" for name in NAMED}
# methods of classes that no plan has, and why: hasattr says False
LEFT = {
    "batch_step_no_noise": "a run has one timestep for all samples; step at each timestep, of DDIM "
    "and DDPM in any order, or the class itself",
    "set_scale_factors": "a run has samples of one size; a run of its own for each size",
    "_init_step_index": "a run keeps its own place and its history; set_begin_index(...), or, for "
    "a pipeline that writes to them, as LEDITS++ does, from_config with source='DDIMScheduler', or "
    "the class itself",
}
# what is set elsewhere, and where; all else of TABLES comes from the config
ELSEWHERE = {
    "timesteps": "set_timesteps(timesteps=...)",
    "sigmas": "set_timesteps(sigmas=...)",
    "num_inference_steps": "set_timesteps(n)",
    "init_noise_sigma": "multiplying the noise, or set_timesteps(sigmas=...),",
    "order": "from_config with another source=",
    "shift": "set_shift(...)",
    "prk_timesteps": "set_timesteps(n)",
    "plms_timesteps": "set_timesteps(n)",
    "step_index": "None, which begins again, or set_begin_index(...)",
}
# what a class keeps while it runs; here a Run does, and no copy of it would be read
STATE = """
    model_outputs timestep_list last_sample lower_order_nums this_order ets counter cur_sample
    cur_model_output prev_derivative dt sample order_list plan
"""
# of it, what no step of a run reads before that run has written it
PAST = ("model_outputs", "timestep_list")
TABLES, FUNCTIONS, STATE = (frozenset(names.split()) for names in (TABLES, FUNCTIONS, STATE))


class Outside(Named):
    """The rest of a scheduler's contract (see `Readings`).

    Data and functions of the source that follow from its config and the timesteps are the class's
    own: read from an object of it that has this thread's timesteps. A class that lacks a name lacks
    it here. Where before set_timesteps the classes place a begin index, it is kept here.
    """

    config: Mapping
    _loops: Loops
    _source: type | None
    _given: Plan | None
    _runs: Runs
    _begin: int | None = None

    def __getattr__(self, name: str):
        """What this class lacks and the source has: AttributeError where neither does."""
        if name in TABLES or name in FUNCTIONS or name in OURS:
            value = getattr(self._as_source(name), name)
            if name in OURS:
                return getattr(self, OURS[name])
            return _in_one_sentence(name, value) if name in FUNCTIONS else value
        if name in LEFT:
            raise AttributeError(f"FsScheduler.{name}: {LEFT[name]} is accepted")
        own = getattr(type(self), name, None)
        if isinstance(own, property):  # it has none at this time, and says why
            return own.__get__(self)
        try:
            return super().__getattr__(name)
        except KeyError:  # a name that dicts have, and no config
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
            ) from None

    def __setattr__(self, name: str, value: object) -> None:
        """A table or a list that is put back moved to another device is kept; what would change a
        run is set elsewhere, and refused here.
        """
        public = name.lstrip("_")
        if public == "begin_index":
            self._begin_at(value)
        elif public == "step_index" and value is None:
            self._loops.again()
        elif public in ELSEWHERE or name in TABLES:
            self._put(public, value)
        elif name == "ets" and self._put_outputs(value):
            pass  # and goes on as the class does
        elif name in PAST and getattr(self._loops.get(), "index", None) is None:
            pass  # nor does a class's first step read what somebody put there
        elif name in STATE:
            raise AttributeError(
                f"FsScheduler.{name} cannot be set: a run keeps its own state; step with another "
                "sample, or a copy of the scheduler, is accepted"
            )
        else:
            super().__setattr__(name, value)

    @property
    def _step_index(self) -> int | None:
        return self.step_index

    @property
    def _begin_index(self) -> int | None:
        return self.begin_index

    def _set_shift(self, shift: float) -> None:
        """The flow shift of the runs that set_timesteps begins from now on."""
        self._runs = self._runs.shifted(shift)

    # -- inside ------------------------------------------------------------------------------------
    def _as_source(self, name: str) -> object:
        """An object of the class, with the timesteps of this thread; AttributeError without one."""
        peer = self.__dict__["_runs"].peer if "_runs" in self.__dict__ else None
        if peer is None or not hasattr(peer, name):
            where = "a plan" if self.__dict__.get("_given") else self.config.source
            raise AttributeError(f"FsScheduler.{name}: {where} has none")
        loop, twin = self._loops.get(), copy.copy(peer)
        if loop is not None:
            if self.config.source == IPNDM:  # whose betas and alphas are the run's
                twin.set_timesteps(self.num_inference_steps)
            twin.timesteps, twin.num_inference_steps = loop.timesteps, self.num_inference_steps
            twin._step_index, twin._begin_index = loop.index, loop.begin
            if hasattr(peer, "sigmas"):
                twin.sigmas = self.sigmas
        return twin

    def _begin_at(self, index: object) -> None:
        """set_begin_index, and None for none."""
        if index is not None:
            self.set_begin_index(index)
        elif (loop := self._loops.get()) is not None:
            loop.begin = None
        else:
            self.__dict__["_begin"] = None

    def _put(self, name: str, value: object) -> None:
        """Keep a value that is what stands there already, in its own dtype and on its device."""
        if not _same(getattr(self, name, None), value):
            accepted = ELSEWHERE.get(name, "from_config with trained_betas= or other options")
            raise AttributeError(
                f"FsScheduler.{name} cannot be set to other values; {accepted} is accepted"
            )
        if name in ("timesteps", "sigmas"):
            loop = self._loops.get()
            if loop is not None:
                loop.told(**{name: value})
        elif name in TABLES:
            self.__dict__[name] = value


def _same(own: object, other: object) -> bool:
    """Are they the same numbers, to the rounding of the other's dtype?"""
    if own is None or other is None or isinstance(own, str):
        return own is other or own == other
    try:
        own, other = (torch.as_tensor(v).detach().cpu() for v in (own, other))
    except (TypeError, ValueError, RuntimeError):
        return False
    rounded = own.to(other.dtype).double()
    eps = torch.finfo(other.dtype).eps if other.is_floating_point() else 0.0
    return own.shape == other.shape and torch.allclose(rounded, other.double(), rtol=eps, atol=0.0)


def _in_one_sentence(name: str, function):
    """A function of the source whose failure to find a timestep is a sentence."""

    @functools.wraps(function)
    def said(*args, **given):
        try:
            return function(*args, **given)
        except IndexError:
            shown = ", ".join(f"{v}"[:40] for v in (*args, *given.values()) if v is not None)
            raise IndexError(
                f"FsScheduler.{name}: no step at {shown}; one of scheduler.timesteps is accepted"
            ) from None

    return said
