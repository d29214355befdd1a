"""The public names as a type checker sees them: `make types`. Nothing here runs, and pytest does
not collect it. What is wrong is marked so, and a mark that nothing needs is an error.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import assert_type

import fastsample as fs
from fastsample.optimize import Search
from fastsample.runtime.ticket import Ticket
from fastsample.trajectories import Trajectory


def plans(fn: Callable[[Tensor, Tensor], Tensor]) -> fs.Plan:
    model = fs.Model(fn, schedule=fs.schedules.Flow(shift=3.0), prediction="flow", time=1000)
    assert_type(model, fs.Model)
    grid = fs.grids.karras(model.schedule, 8)
    times: NDArray[np.float64] = grid
    plan = fs.solvers.dpmpp_2m(model, times)
    assert_type(plan, fs.Plan)
    assert_type(fs.solvers.SOLVERS["euler"](model, grid), fs.Plan)
    assert_type(fs.Plan.load("a.fsplan").remake(start=2), fs.Plan)
    assert_type(plan.describe(), str)
    assert_type(plan.nfe + plan.S + plan.G, int)
    assert_type(plan.note, dict[str, Any])
    flow = fs.schedules.Flow(shift=3.0)
    flow.sigma(flow.time(flow.half_log_snr(0.5)))
    times = fs.grids.from_sigmas(flow, [1.0, 0.5, 0.0])
    assert_type(fs.schedules.from_json(flow.to_json()), fs.schedules.Schedule)
    return plan


def sampled(plan: fs.Plan, model: fs.Model, z: Tensor, both: bool) -> Tensor:
    sampler = fs.Sampler(plan, model, "compile-model")
    assert_type(sampler, fs.Sampler)
    assert_type(sampler(noise=z, seed=7, cond={"y": z}, guidance=3.0), Tensor)
    assert_type(sampler(shape=(2, 4), seed=[1, 2], trajectory=False), Tensor)
    x0, states = sampler(latent=z, strength=0.5, trajectory=True)
    assert_type(states, Tensor)
    assert_type(sampler.for_plan(sampler.plan), fs.Sampler)
    assert_type(sampler.mode, str)
    sampler(noise=z, trajectory=both)
    sampler(noise=z, sed=7)  # type: ignore[call-overload]
    sampler(z)  # type: ignore[call-overload]
    sampler(noise=z, progress="yes")  # type: ignore[call-overload]
    return x0


def tracks(plan: fs.Plan, z: Tensor) -> None:
    sampler = fs.Sampler({"video": plan, "audio": plan}, lambda x, t: x)
    ends = sampler(noise={"video": z, "audio": z}, seed={"video": 1, "audio": 2})
    assert_type(ends["video"], Tensor)


def run(plan: fs.Plan, model: fs.Model, z: Tensor) -> Tensor:
    going = fs.Run(plan, noise=z, seed=7)
    while not going.done:
        going.step(model(going.model_input, going.t))
    assert_type(going.row, int)
    assert_type(going.x, Tensor)
    assert_type(going.x0, Tensor | None)
    return going.x


def served(plan: fs.Plan, model: fs.Model, z: Tensor) -> Tensor:
    engine = fs.Engine(model, (4,), capacity=8)
    ticket = engine.submit(plan, noise=z, seed=7)
    assert_type(ticket, Ticket)
    engine.run()
    assert_type(ticket.result(timeout=1.0), Tensor)
    engine.submit(plan, nose=z)  # type: ignore[call-arg]
    return ticket.result()


async def awaited(ticket: Ticket) -> Tensor:
    return assert_type(await ticket, Tensor)


def searched(model: fs.Model, z: Tensor, plan: fs.Plan) -> None:
    found = fs.optimize.oss(model, z, 6, solver="dpmpp_2m")
    assert_type(found, Search)
    assert_type(found.plan, fs.Plan)
    fs.optimize.oss(model, z, 6, aggregate=1)  # type: ignore[arg-type]
    assert_type(fs.trajectories.record(plan, model, z), Trajectory)


def elsewhere(plan: fs.Plan, model: Callable[..., Tensor], z: Tensor) -> None:
    assert_type(fs.interop.k_sample(plan, model, z, seed=1), Tensor)
    scheduler: fs.FsScheduler = fs.FsScheduler.from_plan(plan)
    scheduler.set_timesteps(8)
    fs.FsScheduler(source="UniPCMultistepScheduler", solver_order=3, flow_shift=3.0)
    fs.FsScheduler(solver_order="3")  # type: ignore[arg-type]
    fs.FsScheduler(solver_ordr=3)  # type: ignore[call-arg]
    fs.interop.k_sample(plan, z, z)  # type: ignore[arg-type]
