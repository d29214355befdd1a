"""An FsScheduler as a file, a pickle and a copy. Imports no diffusers."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path

from .loops import Loops
from .under_way import go_on


class Saving:
    """What a scheduler's config becomes in a file, and its state elsewhere."""

    _loops: Loops

    def to_json_string(self) -> str:
        """The config as strict JSON, which has no infinity: an option that has none is left out,
        where that is its default, or it is a ValueError.
        """
        config = json.loads(super().to_json_string())
        defaults = endless(options_of(type(self)))
        for key in [k for k, v in config.items() if unbounded(v)]:
            if config.pop(key) != defaults.get(key):
                raise ValueError(
                    f"FsScheduler: {key} = {self.config[key]!r} has no place in a file; a finite "
                    "number, or the option's default, is accepted"
                )
        return json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n"

    def to_json_file(self, json_file_path) -> None:
        """Writes the config; a file that stands there stays where it cannot be written."""
        text = self.to_json_string()
        Path(json_file_path).write_text(text, encoding="utf-8")

    def __copy__(self) -> Saving:
        return self.__deepcopy__({})  # a run in two hands would be stepped by both

    def __deepcopy__(self, memo: dict) -> Saving:
        """A scheduler of its own, with this thread's loop where it stands."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _loops=self._loops.own(memo))
        return twin

    def _owned(self) -> Loops:
        """This scheduler's loops, for what changes them: a copy of its __dict__ that was put back
        may stand in several places.
        """
        if self._loops.shared:
            self._loops = self._loops.own()
        return self._loops

    def __setstate__(self, state: dict) -> None:
        """What follows from the config is read anew: a pickle may be of an earlier version."""
        self.__dict__.update(state)
        self.__dict__.pop("_said", None)
        self._read()
        again = self._loops.__dict__.pop("asked", None)
        if again is not None:
            steps, timesteps, sigmas, mu, original, others = again
            words = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu}
            words |= {"original_inference_steps": original, "device": self._loops.device}
            given = {k: v for k, v in words.items() if v is not None} | dict(others)
            self.set_timesteps(num_inference_steps=steps, **given)
            loop = self._loops.get()
            loop.begin = self._loops.begin
            if (state := self._loops.__dict__.pop("under_way", None)) is not None:
                go_on(loop, state)


def options_of(made: type) -> dict[str, inspect.Parameter]:
    """The arguments by name of a scheduler's class and of those that it hands on what it is given
    to.
    """
    classes = [c for c in made.__mro__[::-1] if "__init__" in vars(c)]
    own = [p for c in classes for p in inspect.signature(c.__init__).parameters.values()]
    return {
        p.name: p
        for p in own
        if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def restored(options: Mapping, config: Mapping) -> dict:
    """A saved config with what `to_json_string` left out; options: the scheduler's parameters."""
    return endless(options) | config


def told(made: type, config: Mapping, kept: Mapping) -> dict:
    """What a scheduler made of a config keeps of it, with the words that diffusers adds: class and
    version where the config is of a file; what nobody gave, if there is any.
    """
    words = {k: v for k, v in kept.items() if v or k != "_use_default_values"}
    words |= {"_class_name": made.__name__} if "_class_name" in config else {}
    return words | {k: v for k, v in config.items() if k == "_diffusers_version"}


def endless(options: Mapping) -> dict[str, float]:
    """The defaults among a class's parameters that no file can say."""
    return {name: p.default for name, p in options.items() if unbounded(p.default)}


def unbounded(value: object) -> bool:
    """Is it a float that strict JSON cannot say?"""
    return isinstance(value, float) and not math.isfinite(value)
