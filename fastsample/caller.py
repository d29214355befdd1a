"""Who called the package: a warning points there, however deep in the package it is given."""

from __future__ import annotations

import sys
import warnings

# the package, and what calls it for somebody else: `import`, and diffusers its schedulers
BETWEEN = "fastsample", "importlib", "diffusers"


def warn(text: str) -> None:
    """A UserWarning at the nearest line that is outside of the package and of BETWEEN."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _module(frame).partition(".")[0] in BETWEEN:
        frame = frame.f_back
    place = frame.f_code.co_filename, frame.f_lineno
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(text, UserWarning, *place, _module(frame), registry)


def _module(frame) -> str:
    return str(frame.f_globals.get("__name__"))
