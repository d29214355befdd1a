"""The C++ Engine: the same bits as the Python one, and case by case."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from c import build
from c.plans import plans

import fastsample as fs

pytestmark = pytest.mark.slow  # builds libfastsample
D = 257  # not a multiple of a block, nor of four


@pytest.fixture(scope="module")
def programs():
    return build.installed()[1]


def cases():
    """By name: those of the C tests, and plans that ask two models, or of which some Engine is to
    refuse something.
    """
    found = plans()
    plan, vp = found["dpmpp_2m"], fs.schedules.VP()
    inpaint = fs.solvers.dpmpp_2m_sde(vp, fs.grids.karras(vp, 5), prediction="eps", inpaint=True)
    found["inpaint"] = inpaint
    found["image"] = plan.remake(start=2)
    found["experts"] = fs.solvers.experts(plan, boundary=0.8)
    found["low"] = dataclasses.replace(plan, call=np.minimum(1, 2 * plan.call + 1))
    M = plan.M.copy()
    M[1] *= 1e39
    found["large"] = dataclasses.replace(plan, M=M)
    found["again"] = dataclasses.replace(
        found["dpmpp_2m_sde"], ids=np.minimum(found["dpmpp_2m_sde"].ids, 0)
    )
    for k in range(18):
        flow = fs.schedules.Flow(shift=1.0 + k)
        grid = fs.grids.uniform(flow, 60)
        found[f"long_{k}"] = fs.solvers.euler(flow, grid, prediction="flow")
    model = fs.Model(None, fs.schedules.Flow(), prediction="flow", time=(1, 1))
    found["two_times"] = fs.solvers.euler(model, fs.grids.uniform(model.schedule, 2))
    return found


@pytest.fixture(scope="module")
def plan_files(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("plans"), cases()
    for name, plan in found.items():
        plan.save(folder / f"{name}.fsplan")
    return {name: (plan, folder / f"{name}.fsplan") for name, plan in found.items()}


def test_case_by_case(programs, plan_files):
    said = build.run(programs / "engine_cases", *(path for _, path in plan_files.values()))
    assert int(re.fullmatch(r"(\d+) checks\n", said)[1]) > 10_000


@pytest.mark.parametrize("sanitizers", [None, "ON", "thread"])
def test_a_soak_leaves_nothing_behind(programs, plan_files, sanitizers):
    """10,000 requests, however they end."""
    program = build.sanitized("engine_soak", sanitizers) if sanitizers else programs / "engine_soak"
    said = build.run(
        program, 10_000, *(plan_files[name][1] for name in (*plans(), "experts", "inpaint"))
    )
    ends = re.search(r"(\d+) results, (\d+) cancelled, (\d+) refused, (\d+) failed", said)
    assert sum(map(int, ends.groups())) == 10_000


def denoise(x, t, w):
    """The model of examples/server.cpp, operation by operation."""
    return (w[:, None] * x - 0.1) + (0.001 * t)[:, None]


def served_in_python(mixed, requests):
    engine = fs.Engine(denoise, (D,), capacity=requests)
    tickets = []
    for k in range(requests):
        plan = mixed[k % len(mixed)]
        w = [np.float32(0.3) + np.float32(0.01) * np.float32(k % 7)]
        w += [w[0] + np.float32(0.1)]
        trees = [{"w": torch.tensor([value])} for value in w[: plan.G]]
        guidance = {"guidance": [2.0 + s for s in range(plan.K)]} if plan.K else {}
        given = dict(zip(("cond", "uncond"), trees, strict=False))
        tickets.append(engine.submit(plan, seed=k, **given, **guidance))
    engine.run()
    return np.stack([ticket.result()[0].numpy() for ticket in tickets])


def test_mixed_requests_have_the_bits_of_the_python_engine_in_any_order(
    programs, plan_files, tmp_path
):
    mixed = [plan_files[name] for name in plans()]
    want = served_in_python([plan for plan, _ in mixed], 64)
    assert np.isfinite(want).all() and len(np.unique(want[:, 0])) > 60
    orders = set()
    for order in range(4):
        out, paths = tmp_path / "states.bin", [path for _, path in mixed]
        said = build.run(programs / "server_cpp", out, 64, D, order, *paths)
        served = np.fromfile(out, np.dtype([("number", np.int32), ("x", np.float32, D)]))
        orders.add(tuple(served["number"]))
        assert said.startswith("64 requests") and sorted(served["number"]) == list(range(64))
        assert served["x"][np.argsort(served["number"])].tobytes() == want.tobytes()
    assert len(orders) == 4
