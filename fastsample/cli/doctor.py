"""fastsample doctor: what is installed, and what is missing."""

from __future__ import annotations

import argparse
from collections.abc import Callable

ABOUT = "print versions, the backends with the reason for each, and what is missing"
EXAMPLE = ""


def options(add: Callable) -> None:
    """It takes none."""


def run(args: argparse.Namespace) -> None:
    from .. import report

    lines = report.doctor()
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name.ljust(width)}  {finding}" for name, finding in lines))
