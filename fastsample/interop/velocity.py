"""A plan run for a flow's velocity, whose caller keeps the loop's words: what LeRobot's hook does.

    x = (1 - t)·x0 + t·eps        v(x, t [B]) = eps - x0, t from 1 (noise) to 0 (data)

A network of the other direction, t' = 1 - t and v' = x0 - eps, is asked as v(x, t) = -v'(x, 1 - t).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..kernels import transforms
from ..kernels.reference import step as definition
from ..model import Model
from ..plan import Plan, provenance
from ..plan.row import Layout
from ..runtime import arguments, outputs, sources
from ..runtime.drive import drive
from ..runtime.run import Run
from ..runtime.spares import Spares
from ..schedules import Flow, from_json


def refuse(where: str, plan: object, tells: bool = True) -> None:
    """TypeError or ValueError, one sentence, for a plan that is none for a velocity, from noise.
    tells: the model hears the plan's own times, so they have to be t.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"{where}: plan is a {type(plan).__name__}; a fastsample.Plan is accepted")
    several = plan.G > 1 or plan.K > 0 or plan.E > 1 or int(plan.call.max()) > 0
    if several or plan.sigma[0] == 0:
        kind = "begins from an image" if plan.sigma[0] == 0 else "asks several branches or models"
        raise ValueError(
            f"{where}: the plan {kind}; a plan from noise that asks one model once a row is "
            "accepted, and guidance is the model's"
        )
    own = plan.note.get("schedule")
    flow = isinstance(own, dict) and own.get("name") == "Flow"
    schedule = from_json(own) if flow else Flow()  # a shift moves the plan's times, not the network
    time = 1 if tells else provenance.said(plan).get("time")
    provenance.agree(where, plan, [Model(None, schedule=schedule, prediction="flow", time=time)])
    if any(arguments.drawn(plan, 0, masked=False)):
        raise ValueError(
            f"{where}: the plan draws noise before it asks the model; a grid that begins without "
            "churn is accepted"
        )


class Places:
    """Where the fields of a row's numbers begin: a Layout that torch.compile can follow."""

    def __init__(self, layout: Layout) -> None:
        self.S, self.L, self.K, self.W = layout.S, layout.L, layout.K, layout.W
        self._at = {name: layout.at(name) for name in ("M", "p", "q", "clip", "U", "c", "preview")}

    def at(self, name: str) -> int:
        return self._at[name]


class Rows:
    """A plan's rows as Python's numbers, and idle runs of it. TypeError or ValueError, one sentence
    in the name of `where`, for a plan that was made for anything else than such a velocity.
    """

    def __init__(self, where: str, plan: Plan) -> None:
        refuse(where, plan)
        self.plan, self.nfe, self.scale = plan, plan.nfe, plan.init_scale
        self.at, self.times = Places(plan.layout), [0.0, *plan.t[:-1, 0].tolist()]
        self.shapes, self.ids = plan.program.rows, sources.ids(plan, False)
        self.numbers = [tuple(row) for row in plan.table(np.float64)[0].tolist()]
        self.last, self.draws = plan.rows - 1, bool(arguments.drawn_from(plan, 1, masked=False))
        self.spares = Spares()

    def run(self, where: str, noise: Tensor, ask: Callable) -> Tensor:
        """x0 [B,*] in the state dtype, from unit noise [B,*]; ask(x, t, row) -> v, t float32 [B].

        Bound launches on memory that is kept, where nothing looks at the operations; else, under
        torch.compile, a transform, or with gradients recorded, the same numbers in plain torch.
        Raises FloatingPointError for a state that is not finite in the end, but not there.
        """
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or transforms.watched():
            return self._definition(where, noise, ask)
        key = self.spares.key(self.plan, noise)
        run = self.spares.take(key)
        with arguments.named(where, latent="noise"):
            first = noise.to(arguments.state_dtype(noise))
            draw = self._noises(first)
            first = first if self.scale == 1.0 else first * self.scale
            if run is None:
                words = {"model_dtype": noise.dtype, "noise_source": draw, "preview": False}
                run = Run(self.plan, latent=first, start=1, **words)
            else:
                run.rewind(first, draw)
        end = drive(run, lambda x, t, row: ask(x, t.float(), row), where=where)
        run.check(where)
        self.spares.give(key, run)
        return end

    def _definition(self, where: str, noise: Tensor, ask: Callable) -> Tensor:
        """The rows in operators of torch."""
        x = noise.to(torch.float64 if noise.dtype == torch.float64 else torch.float32)
        slots, draw = [None] * self.at.S, self._noises(x)
        x = x if self.scale == 1.0 else x * self.scale
        for row in range(1, self.last):
            shape, ids = self.shapes[row], self.ids[row]
            t = torch.full(x.shape[:1], self.times[row], dtype=torch.float32, device=x.device)
            v = None
            if shape.call >= 0:
                asked = x.to(noise.dtype)
                v = outputs.one(where, ask(asked, t, row), asked, row).to(x.dtype)
            drawn = [None if id_ is None else draw(row, id_) for id_ in ids]
            x, first, second, *_ = definition.row(
                shape, self.at, self.numbers[row], x, slots, [v], drawn
            )
            if shape.du >= 0:
                slots[shape.du] = first
            if shape.dv >= 0:
                slots[shape.dv] = second
        return x

    def _noises(self, noise: Tensor) -> Callable | None:
        """(row, id) -> the noise of a plan that draws, torch's own, the same again for the same id,
        the first being what the run starts with; None for a plan that draws none.
        """
        kept = {0: noise}

        def draw(row: int, id_: int) -> Tensor:
            if id_ not in kept:
                kept[id_] = torch.randn_like(noise)
            return kept[id_]

        return draw if self.draws else None
