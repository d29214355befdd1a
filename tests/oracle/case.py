"""What a family of solvers says of its members, in a file of its own beside this one (multistep.py,
singlestep.py, stochastic.py, refined.py, stabilised.py; cases.py has the first ones and gathers
all):

CASES       [Case]: a solver with options, and the direct loop it must equal
LITERALS    [(solver, schedule, levels sigma/alpha, prediction, options, {row: {operand:
            coefficient of x'}})]: at least one of each solver, worked out by hand
METHODS     [(solver, options, order of its rows, outputs a full row needs[, words])]:
            deterministic ones, whose order orders.py measures; words as `orders.Method` has them
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastsample.solvers import SOLVERS


@dataclass(frozen=True)
class Case:
    """A solver with options, the loop it must equal, and the loop's options; `adds(schedule, grid)`
    are those that depend on what it is run on. `stage="of the plan"` among them makes `stage` a
    function lambda -> Point, at the float time that the plan asks at.

    marginal: do its rows stand on the schedule when predictions are exact?
    """

    name: str
    loop: object
    options: dict = field(default_factory=dict)
    expect: dict = field(default_factory=dict)
    adds: Callable = lambda schedule, grid: {}
    marginal: bool = True

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

    def plan(self, schedule, grid, prediction: str = "x0", **more):
        return SOLVERS[self.name](schedule, grid, prediction=prediction, **self.options, **more)

    def loop_options(self, schedule, grid) -> dict:
        return self.adds(schedule, grid) | self.expect
