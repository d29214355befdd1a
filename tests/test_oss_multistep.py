"""OSS with multistep solvers: equal to a greedy search over whole plans in float64, exact
evaluation counts, the end points of its plans, what it refuses.
"""

import numpy as np
import pytest
import torch
from test_oss import problem, taught, teacher_states

import fastsample as fs
from fastsample import metrics, solvers
from fastsample.optimize import _families, _jumps, oss

pytestmark = pytest.mark.filterwarnings("ignore:oss. the teacher")
MULTISTEP = ("dpmpp_2m", "dpmpp_3m", "unipc")
WIDE = torch.float64


def solved(model, solver, times):
    """The solver's plan, of the order it has within a longer run at its last step too."""
    words = {} if solver in solvers.JUMPS else {"lower_order_final": False}
    return solvers.SOLVERS[solver](model, times, **words)


def brute(model, solver, z, grid, X, M, start, p, weight):
    """Greedy search by its definition: {k: (nodes, error)}; every jump is the end of its path's
    whole plan, run from the noise.
    """
    t, N = grid[::-1], len(grid) - 1
    layer = {i: [i] for i in range(1, N + 1) if i == N or start == "free"}
    found = {}
    for k in range(1, M + 1):
        after = {}
        for j in range(N - k + 1):
            best = None
            for i in sorted(layer, reverse=True):
                if i > j:
                    nodes = [*layer[i], j]
                    end = metrics.run(solved(model, solver, t[nodes]), model, z, state_dtype=WIDE)
                    cost = float((np.abs(end.numpy() - X[:, j]) ** p * weight).mean())
                    if best is None or cost < best[0]:
                        best = cost, nodes
            after[j] = best
        found[k] = after[0][::-1]
        layer = {j: nodes for j, (_, nodes) in after.items() if j > 0}
    return found


@pytest.mark.parametrize(
    "schedule, prediction, solver, start, p, weighed",
    [
        ("edm", "x0", "dpmpp_2m", "free", 2.0, False),
        ("flow", "flow", "dpmpp_2m", "fixed", 1.0, True),
        ("vp", "eps", "unipc", "free", 1.0, False),
        ("edm", "edm", "unipc", "free", 2.0, True),
        ("flow", "v", "dpmpp_3m", "free", 2.0, True),
    ],
)
def test_equals_brute_force(schedule, prediction, solver, start, p, weighed):
    model, z, grid = problem(schedule, prediction, N=6)
    weight = np.array([0.0, 0.5, 1.0, 1.5, 2.0]) if weighed else np.ones(5)
    options = {"solver": solver, "teacher": taught(model, grid), "start": start, "p": p}
    options |= {"amplitude": False, "weight": torch.tensor(weight) if weighed else None}
    found = oss(model, z, 5, **options)
    X = teacher_states(model, found.teacher, z, grid)
    for k, (nodes, error) in brute(model, solver, z, grid, X, 5, start, p, weight).items():
        assert (len(grid) - 1 - found.indices[k]).tolist() == nodes
        assert found.error[k] == pytest.approx(error, rel=1e-8)
        np.testing.assert_array_equal(found.plans[k].note["times"], grid[found.indices[k]])
    # The band cuts states no path can use.
    one = oss(model, z, 5, all_budgets=False, **options)
    assert one.indices[5].tolist() == found.indices[5].tolist()
    assert one.error[5] == pytest.approx(found.error[5], rel=1e-12)


def test_a_solver_of_one_step_is_the_same_by_its_plans(monkeypatch):
    """Euler found as any solver whose steps are read off its plans, beside its own map."""
    model, z, grid = problem("vp", "v", N=8)
    given = {"solver": "euler", "teacher": taught(model, grid), "p": 1.0}
    own = oss(model, z, 4, **given)
    monkeypatch.delitem(solvers.JUMPS, "euler")
    read = oss(model, z, 4, **given)
    for m in own.plans:
        assert own.indices[m].tolist() == read.indices[m].tolist()
        assert own.error[m] == pytest.approx(read.error[m], rel=1e-9)
        assert np.allclose(own.plans[m].M, read.plans[m].M, rtol=1e-9)


@pytest.mark.parametrize("solver", MULTISTEP)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sampler_lands_where_the_search_said(solver, dtype):
    """With the amplitude it tuned, which is not 1 and does no harm."""
    model, z, grid = problem("vp", "v", B=4, N=9)
    told = {"solver": solver, "teacher": taught(model, grid), "state_dtype": dtype}
    plain, found = (oss(model, z, 5, amplitude=scaled, **told) for scaled in (False, True))
    target = metrics.run(found.teacher, model, z, state_dtype=WIDE)
    for m, plan in found.plans.items():
        end = fs.Sampler(plan, model, state_dtype=WIDE)(noise=z)
        error = float(((end - target) ** 2).mean())
        assert error == pytest.approx(found.error[m], rel=1e-9 if dtype == WIDE else 1e-3)
        assert found.error[m] <= plain.error[m]
        assert (found.indices[m] == plain.indices[m]).all()
    assert any(plan.note["found"]["amplitude"] != 1 for plan in found.plans.values())


@pytest.mark.parametrize("solver", MULTISTEP)
def test_evaluations(solver):
    """Those of a solver of one step, as the module's docstring has them."""
    N, M = 7, 4
    model, z, grid = problem(N=N)
    rows = []
    fn = lambda x, t: (rows.append(len(x)), model.fn(x, t))[1]
    counted = fs.Model(fn, schedule=model.schedule, prediction="x0")
    T, A = N, N + 2 * N - 1
    formula = {
        ("fixed", False): T + A + (M - 1) * (N - M + 1),
        ("fixed", True): T + A + (M - 1) * N - M * (M - 1) // 2,
        ("free", False): T + A + M * (N - M + 1) - 1,
        ("free", True): T + A + M * N - M * (M - 1) // 2 - 1,
    }
    for (start, every), expected in formula.items():
        for scaled in (False, True):
            rows.clear()
            words = {"start": start, "all_budgets": every, "amplitude": scaled}
            found = oss(counted, z, M, solver=solver, teacher=taught(model, grid), **words)
            walks = 2 * scaled * (M * (M + 1) // 2 if every else M)
            assert found.nfe == sum(rows) / len(z) == expected + walks
            assert all(plan.nfe == m for m, plan in found.plans.items())


def test_states_of_16_bits_lose_what_they_round():
    model, z, grid = problem("vp", "v", B=6, N=9, std=0.5)
    for solver in ("dpmpp_2m", "unipc"):
        given = {"solver": solver, "teacher": taught(model, grid)}
        wide = oss(model, z.float(), 3, **given)
        half = oss(model, z.float(), 3, state_dtype=torch.bfloat16, **given)
        assert half.bytes * 2 == wide.bytes
        assert half.error[3] == pytest.approx(wide.error[3], rel=0.2)


def weighing(ages):
    """A solver whose step from x weighs, beside DDIM's, 1e-3 of the differences of the newest
    prediction and those so many steps older.
    """

    def maker(model, grid, **words):
        b = fs.solvers.Builder(model, grid, **words)
        for i in range(b.n):
            a, c = solvers.jump(b.schedule, b.t[i], b.t[i + 1])
            step = float(a) * fs.solvers.X + float(c) * fs.solvers.M
            for age in ages:
                if i >= age and b.sigma[i + 1]:
                    step = step + 1e-3 * (fs.solvers.M - fs.solvers.R(f"m{i - age}"))
            b.row(b.t[i], to=b.t[i + 1], x=step, keep={f"m{i}": fs.solvers.M})
        return b.build("weighing", order=1)

    return maker


def test_what_is_no_jump_is_refused_before_the_model_is_asked(monkeypatch):
    law, z, grid = problem()
    asked = []
    model = fs.Model(lambda x, t: asked.append(t), law.schedule, "x0")
    for solver in ("heun", "dpmpp_2s", "euler_ancestral", "lcm"):
        sentence = f"oss: solver='{solver}' asks the model .*once a step and draws no noise is acc"
        with pytest.raises(ValueError, match=sentence):
            oss(model, z, 3, solver=solver, teacher=taught(law, grid))
    with pytest.raises(ValueError, match="aggregate='median' with solver='unipc'.*'joint', is acc"):
        oss(model, z, 3, solver="unipc", aggregate="median", teacher=taught(law, grid))
    monkeypatch.setitem(solvers.SOLVERS, "weighing", weighing((1, 2, 3)))
    with pytest.raises(ValueError, match="solver='weighing': a step reads 4 predictions; at"):
        oss(model, z, 3, solver="weighing", teacher=taught(law, grid))
    assert not asked
    monkeypatch.setitem(solvers.SOLVERS, "weighing", weighing((1, 2)))
    assert oss(law, z, 3, solver="weighing", teacher=taught(law, grid)).plan.nfe == 3


def test_how_many_predictions_a_solver_reads():
    model, _, grid = problem("vp", "eps", N=12)
    reads = {name: _jumps.Jumps.of(model, name, grid).reads for name in ("euler", *MULTISTEP)}
    assert reads == {"euler": 1, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 4}


@pytest.mark.parametrize("solver", MULTISTEP)
@pytest.mark.parametrize("schedule", ["edm", "flow", "vp"])
def test_a_step_is_the_last_row_of_a_plan(monkeypatch, solver, schedule):
    """To rounding, from the first step of a run to its fifth, to the data end too."""
    model, _, grid = problem(schedule, "x0", N=12)
    paths = [(12, 9), (12, 0), (12, 11, 7), (10, 6, 5, 2), (12, 9, 8, 5, 3, 1), (12, 9, 8, 4, 3, 0)]
    step = _families.row_of("", solver, model, grid[::-1])
    steps = [step(path, len(path) - 1) for path in paths]
    monkeypatch.delitem(solvers.STEPS, solver)
    row = _families.row_of("", solver, model, grid[::-1])
    for path, w in zip(paths, steps, strict=True):
        most = np.abs(w).max()
        assert w == pytest.approx(row(path, len(path) - 1), rel=0, abs=1e-12 * most)
        assert row(path, 1).tolist() == row(path, len(path) - 1)[[0, -1]].tolist()
