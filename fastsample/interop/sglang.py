"""fastsample's schedulers in SGLang-Diffusion, which loads them by name (written for its 0.5.23).

    export SGLANG_EXTERNAL_MODEL_PACKAGE=fastsample.interop.sglang
    sglang serve ... --scheduler-class-override FsUniPCMultistepScheduler

For every class that FsScheduler stands in for there is one here, named Fs and the class's name.
SGLang's loader tells a scheduler what the checkpoint's scheduler_config.json says, but not the
class that this was written for, so the name given to it has to say the solver. "FsScheduler" is for
a folder that an FsScheduler, say one with a plan, was saved in: its file says all.
"""

from __future__ import annotations

import sys

from ..plan.given import real
from .diffusers import FsScheduler as Base
from .diffusers import diffusers
from .diffusers.moving import arguments
from .diffusers.options import defaults, named
from .diffusers.saving import options_of, told
from .diffusers.sources import OURS, SOURCES

REGISTRY = "sglang.multimodal_gen.runtime.models.registry"


class Hosted(Base):
    """An FsScheduler that is made of a scheduler_config.json without its class's name. `of`: the
    diffusers class whose solver it runs; None: the one that the config itself says.

    A config that holds an option of another class than `of` is read as that other's and moved, as
    `FsScheduler.from_config(..., source=of)` moves it. What no class knows is for the pipeline, and
    not read. Raises ValueError or TypeError, one sentence, where that would change what the model
    is asked, or where the config does not say what it is.
    """

    of: str | None = None

    def __init__(self, **config):
        own = options_of(Base)
        if config.get("plan"):
            super().__init__(**{k: v for k, v in config.items() if k in own})
            return
        written = self._written_for(config)
        said = {k: v for k, v in config.items() if k in OURS or k in {*_options(written), "moved"}}
        if not config.keys() >= OURS:
            said["_class_name"] = written
        given = {} if self.of is None else {"source": self.of}
        words, kept, _ = arguments(diffusers, own, said, None, given)
        super().__init__(**words)
        self.register_to_config(**told(type(self), said, kept))

    @property
    def num_train_timesteps(self) -> int:
        """T of the noise schedule; timesteps lie in 0..T."""
        return self.config.num_train_timesteps

    def set_shift(self, shift: float) -> None:
        """The flow shift of the runs that set_timesteps begins from now on; the pipeline's
        flow_shift comes here. ValueError, one sentence, where the schedule is no flow.
        """
        if self._scale != "flow" or self._given is not None:
            where = "a plan" if self._given else self.config.source
            raise ValueError(
                f"{type(self).__name__}.set_shift: {shift!r} for {where}, whose schedule has no "
                "flow shift; a pipeline with flow_shift = None is accepted"
            )
        number = real(shift)
        if number is None or number <= 0:
            raise ValueError(
                f"{type(self).__name__}.set_shift: {shift!r:.60}; a number above 0 is accepted"
            )
        if "flow_shift" in self.config:
            both = {"flow_shift", "shift"} & self.config.keys()  # "shift" of what it was moved from
            self.register_to_config(**dict.fromkeys(both, shift))
        else:
            self._set_shift(shift)

    def _written_for(self, config: dict) -> str:
        """The class whose options these are: `of` wherever it knows them all."""
        if config.keys() >= OURS:
            return config["source"]
        if self.of is None:
            raise TypeError(
                "FsScheduler: scheduler_config.json was not written by an FsScheduler; "
                "--scheduler-class-override FsFlowMatchEulerDiscreteScheduler, or another Fs and "
                "class name, is accepted"
            )
        known = set().union(*map(_options, SOURCES))
        keys = config.keys() & known
        fits = [name for name in SOURCES if keys <= {*named(name, _options(name))}]
        fits += [self.of] if keys <= {*_options(self.of)} else []
        if self.of in fits or len(fits) == 1:
            return self.of if self.of in fits else fits[0]
        other = min(keys - {*_options(self.of)})
        raise ValueError(
            f"{type(self).__name__}: {other} = {config[other]!r:.60} of scheduler_config.json is "
            f"no option of {self.of}; the Fs class of what it was written for "
            f"({', '.join(fits) or 'none is known'}) is accepted"
        )


def _options(name: str) -> dict:
    return defaults(diffusers, name)


def _named(name: str, of: str | None) -> type:
    """A class of that name in this module."""
    words = {"of": of, "__module__": __name__, "__qualname__": name, "__doc__": Hosted.__doc__}
    return type(name, (Hosted,), words)


CLASSES = {f"Fs{name}": _named(f"Fs{name}", name) for name in SOURCES}
CLASSES["FsScheduler"] = _named("FsScheduler", None)
globals().update(CLASSES)
__all__ = [*CLASSES]  # noqa: PLE0604 (names, made above)

if "sglang" in sys.modules:  # SGLang imports this module to have its classes registered
    registry = __import__(REGISTRY, fromlist=["ModelRegistry"]).ModelRegistry
    for name in CLASSES:
        registry.register_model(name, f"{__name__}:{name}")
