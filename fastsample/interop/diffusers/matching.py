"""FlowMatchEuler's rows beyond a plain Euler run: levels that repeat, inverted sigmas, stochastic
sampling. No torch, no diffusers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ... import solvers
from ...model import Model
from ...plan import Plan
from ...solvers._build import Builder, M, N, X


def matching(
    model: Model,
    at: np.ndarray,
    labels: np.ndarray,
    *,
    stochastic: bool,
    inverted: bool,
    first: int,
) -> Plan:
    """x' = x + (s' - s) m, m = eps - x0; stochastic: x' = (1 - s') (x - s m) + s' n. First order,
    one evaluation a step.

    at [n+1]: levels s that never rise; a step between two equal ones is of length 0, and draws all
    the same where it is stochastic. labels [n]: what the model is told. inverted: its output is -m.
    first: steps of the whole run before this one, whose noises come first. Liu et al. 2023,
    arXiv:2209.03003, Alg. 1.
    """
    plain = bool((np.diff(at) < 0.0).all()) and not (stochastic or inverted)
    if plain:
        return solvers.euler(model, at)
    b = Builder(replace(model, time=lambda t: labels), at, stored="flow")
    for i in range(b.n):
        s, to = b.t[i], b.t[i + 1]
        x = X + (to - s) * M
        if stochastic:
            x = (1.0 - to) * (X - s * M) + to * N(first + i + 1)
        b.row(s, to=to, x=x)
    made = b.build(
        "flow matching",
        arguments={"stochastic": stochastic, "inverted": inverted},
        order=1,
        orders=[1] * b.n,
        citations=["Liu, Gong, Liu 2023, Flow Straight and Fast, Alg. 1, arXiv:2209.03003"],
    )
    return made.with_numbers(q=-made.q) if inverted else made
