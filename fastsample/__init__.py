"""fastsample: few-step sampling for diffusion and flow models, as a compiled plan.

    import fastsample as fs
    model = fs.Model(fn, schedule=fs.schedules.Flow(shift=3.0), prediction="flow", time=1000)
    plan = fs.solvers.dpmpp_2m(model, fs.grids.karras(model.schedule, 8))
    x0 = fs.Sampler(plan, model)(noise=z, seed=7)

Names load on first use; importing the package alone loads NumPy and nothing heavier. What needs a
package that is not installed says so in one sentence, and `import *` and help() leave it out.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import (
        grids,
        guidance,
        interop,
        kernels,
        metrics,
        models,
        optimize,
        report,
        schedules,
        solvers,
        trajectories,
    )
    from .interop.diffusers import FsScheduler
    from .model import Model
    from .plan import Plan, PlanError
    from .runtime.brownian import brownian
    from .runtime.conditions import shared
    from .runtime.engine import Engine
    from .runtime.exported import export
    from .runtime.queue import DeadlineExceeded, EngineFull
    from .runtime.run import Run
    from .runtime.sampler import Sampler
    from .runtime.select import Select
    from .runtime.window import window

__version__ = "0.2.0"
_NAMES = {
    "DeadlineExceeded": "runtime.queue",
    "Engine": "runtime.engine",
    "EngineFull": "runtime.queue",
    "FsScheduler": "interop.diffusers",
    "Model": "model",
    "Plan": "plan",
    "PlanError": "plan",
    "Run": "runtime.run",
    "Sampler": "runtime.sampler",
    # not ours: diffusers asks the module of a pipeline's part for the part's base class
    "SchedulerMixin": "interop.diffusers",
    "Select": "runtime.select",
    "brownian": "runtime.brownian",
    "export": "runtime.exported",
    "shared": "runtime.conditions",
    "window": "runtime.window",
}
__all__ = [
    "DeadlineExceeded",
    "Engine",
    "EngineFull",
    "FsScheduler",
    "Model",
    "Plan",
    "PlanError",
    "Run",
    "Sampler",
    "Select",
    "brownian",
    "export",
    "grids",
    "guidance",
    "interop",
    "kernels",
    "metrics",
    "models",
    "optimize",
    "report",
    "schedules",
    "shared",
    "solvers",
    "trajectories",
    "window",
]

_PARTS = frozenset(__all__) - _NAMES.keys()  # modules
# names that load without torch
_LIGHT = {"DeadlineExceeded", "EngineFull", "Model", "Plan", "PlanError", "grids", "guidance"}
_LIGHT |= {"interop", "metrics", "report", "schedules", "solvers"}


def _missing(package: str) -> bool:
    try:
        return find_spec(package) is None
    except ImportError:
        return True


if not TYPE_CHECKING:
    if _missing("torch"):
        __all__ = [name for name in __all__ if name in _LIGHT]
    elif _missing("diffusers"):
        __all__.remove("FsScheduler")


def __getattr__(name: str) -> object:
    if name in _NAMES:
        if name in ("Plan", "PlanError"):
            for makers in (".solvers", ".guidance"):  # so that plan.remake and unguided find them
                importlib.import_module(makers, __name__)
        module = _loaded(name, f".{_NAMES[name]}")
        value = globals()[name] = getattr(module, name)
        return value
    if name in _PARTS:
        return _loaded(name, f".{name}")
    raise AttributeError(
        f"module 'fastsample' has no attribute {name!r}; its names are {', '.join(__all__)}"
    )


def _loaded(name: str, module: str) -> object:
    """The module; ImportError, one sentence, where it needs torch and there is none."""
    try:
        return importlib.import_module(module, __name__)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"fastsample.{name}: needs torch, which is not installed; pip install torch",
            name="torch",
        ) from None


def __dir__() -> list[str]:
    return sorted(__all__)
