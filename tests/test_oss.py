"""OSS: equal to a brute-force greedy search in float64, exact evaluation counts, ties, batches,
guidance, provenance.
"""

import itertools

import interpreter
import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.kernels import cost_matrix
from fastsample.models.analytic import Gaussian, GaussianMixture
from fastsample.optimize import _layers, oss

# Most searches here need no good one.
pytestmark = pytest.mark.filterwarnings("ignore:oss. the teacher")
TORCH64 = {"dtype": torch.float64}
SCHEDULES = {
    "edm": fs.schedules.EDM(sigma_max=20.0),
    "flow": fs.schedules.Flow(shift=3.0),
    "vp": fs.schedules.VP(),
}


def problem(schedule="edm", prediction="x0", B=3, D=5, N=7, seed=0, std=0.15):
    """(model, unit noise [B,D] float64, grid [N+1]) of a mixture of three Gaussians."""
    draw = np.random.default_rng(seed)
    law = GaussianMixture(draw.standard_normal((3, D)), [0.2, 0.3, 0.5], std)
    z = torch.tensor(draw.standard_normal((B, D)))
    return law.model(SCHEDULES[schedule], prediction), z, fs.grids.karras(SCHEDULES[schedule], N)


def taught(model, grid):
    """A teacher of one evaluation a step, which a search leaves as it is."""
    return fs.solvers.dpmpp_3m(model, grid)


def teacher_states(model, plan, z, grid):
    """X [B,N+1,D] from the data end, by the interpreter."""
    out = []
    ask = lambda inp, t, row, call: [model(inp[None], np.asarray(t))[0]]
    for x in z.numpy():
        trace = []
        interpreter.run(plan, x, ask, trace=trace)
        out.append([state for state, _ in trace[: len(grid)]])
    return np.array(out)[:, ::-1]


def brute(model, solver, z, grid, X, M, start, p):
    """Greedy search by its definition: {k: (nodes, error)} for k = 1..M, every quantity in float64,
    one pair at a time.
    """
    t, N, z = grid[::-1], len(grid) - 1, z.numpy()
    s, jump = model.schedule, fs.solvers.JUMPS[solver]

    def x0(x, i):
        a, b = fs.model.to_x0(model.prediction, s.alpha(t[i]), s.sigma(t[i]), model.sigma_data)
        given = torch.tensor(float(model.scales(t[i : i + 1])[0]) * x)
        label = torch.full((len(x),), float(model.times(t[i : i + 1])[0]), **TORCH64)
        return a * x + b * model(given, label).numpy()

    layer = {i: (s.sigma(t[i]) * z, [i]) for i in range(1, N + 1) if i == N or start == "free"}
    found = {}
    for k in range(1, M + 1):
        after = {}
        for j in range(N - k + 1):
            best = None
            for i in sorted(layer, reverse=True):
                if i > j:
                    a, b = jump(s, float(t[i]), float(t[j]))
                    landed = a * layer[i][0] + b * x0(layer[i][0], i)
                    cost = (np.abs(landed - X[:, j]) ** p).mean()
                    if best is None or cost < best[0]:
                        best = (cost, landed, [*layer[i][1], j])
            after[j] = best
        found[k] = (after[0][2], after[0][0])
        layer = {j: v[1:] for j, v in after.items() if j > 0}
    return found


@pytest.mark.parametrize(
    "schedule, prediction, solver, start, p",
    [
        ("edm", "x0", "euler", "free", 2.0),
        ("edm", "edm", "ddim", "fixed", 2.0),
        ("flow", "flow", "euler", "free", 1.0),
        ("flow", "v", "euler", "fixed", 3.0),
        ("vp", "eps", "ddim", "free", 2.0),
    ],
)
def test_equals_brute_force(schedule, prediction, solver, start, p):
    model, z, grid = problem(schedule, prediction)
    options = {"solver": solver, "teacher": taught(model, grid), "start": start, "p": p}
    found = oss(model, z, 4, amplitude=False, **options)
    X = teacher_states(model, found.teacher, z, grid)
    for k, (nodes, error) in brute(model, solver, z, grid, X, 4, start, p).items():
        assert (len(grid) - 1 - found.indices[k]).tolist() == nodes
        assert found.error[k] == pytest.approx(error, rel=1e-9)
        np.testing.assert_array_equal(found.plans[k].note["times"], grid[found.indices[k]])
    # The band cuts states no path can use.
    one = oss(model, z, 4, amplitude=False, all_budgets=False, **options)
    assert one.indices[4].tolist() == found.indices[4].tolist()
    assert one.error[4] == pytest.approx(found.error[4], rel=1e-12)


@pytest.mark.parametrize("N, M", [(7, 1), (7, 4), (7, 7), (12, 5)])
@pytest.mark.parametrize("every", [True, False])
def test_evaluations(N, M, every):
    model, z, grid = problem(N=N)
    rows = []
    fn = lambda x, t: (rows.append(len(x)), model.fn(x, t))[1]
    counted = fs.Model(fn, schedule=model.schedule, prediction="x0")
    options = {"teacher": taught(model, grid), "all_budgets": every}
    # The teacher's, and those of its agreement: its last step starts at t_min and is not cut.
    T, A = N, N + 2 * N - 1
    formula = {
        ("fixed", False): T + A + (M - 1) * (N - M + 1),
        ("fixed", True): T + A + (M - 1) * N - M * (M - 1) // 2,
        ("free", False): T + A + M * (N - M + 1) - 1,
        ("free", True): T + A + M * N - M * (M - 1) // 2 - 1,
    }
    for start in ("fixed", "free"):
        rows.clear()
        found = oss(counted, z, M, start=start, batch_size=4, amplitude=False, **options)
        assert found.nfe == sum(rows) / len(z) == formula[start, every]
        assert (found.teacher.nfe, found.agreement_nfe) == (T, A)
        assert max(rows) <= 4
        assert sorted(found.plans) == (list(range(1, M + 1)) if every else [M])
        assert all(plan.nfe == m for m, plan in found.plans.items())
        assert found.plan.note["found"]["evaluations"] == found.nfe
    walk = M * (M + 1) // 2 if every else M
    rows.clear()
    scaled = oss(counted, z, M, **options)
    assert scaled.nfe == sum(rows) / len(z) == formula["free", every] + 2 * walk
    rows.clear()
    median = oss(counted, z, M, start="fixed", aggregate="median", **options)
    assert median.nfe == sum(rows) / len(z) == formula["fixed", every] + walk


def test_the_plan_lands_where_the_search_said():
    for aggregate, start in itertools.product(("joint", "median"), ("free", "fixed")):
        model, z, grid = problem("vp", "v", B=4)
        found = oss(model, z, 3, teacher=taught(model, grid), aggregate=aggregate, start=start)
        target = fs.metrics.run(found.teacher, model, z, state_dtype=torch.float64)
        for m, plan in found.plans.items():
            end = fs.metrics.run(plan, model, z, state_dtype=torch.float64)
            assert float(((end - target) ** 2).mean()) == pytest.approx(found.error[m], rel=1e-9)


def test_one_evaluation_is_the_best_label_of_all():
    model, z, grid = problem(B=6, N=9)
    found = oss(model, z, 1, teacher=taught(model, grid), amplitude=False)
    target = fs.metrics.run(found.teacher, model, z, state_dtype=torch.float64)
    plans = [fs.solvers.euler(model, grid[[i, 9]]) for i in range(9)]
    ends = [fs.metrics.run(plan, model, z, state_dtype=torch.float64) for plan in plans]
    best = min(fs.metrics.mse(end, target) for end in ends)
    assert found.error[1] == pytest.approx(best, rel=1e-12)


def test_joint_is_no_worse_than_what_it_replaces():
    """On the noises searched with: the median form, and every evenly spaced subset from any label
    of the same grid.
    """
    model, z, grid = problem(B=24, D=16, N=24, seed=3)
    joint, median = (
        oss(model, z, 6, teacher=taught(model, grid), aggregate=a, amplitude=False)
        for a in ("joint", "median")
    )
    target = fs.metrics.run(joint.teacher, model, z, state_dtype=torch.float64)
    for m in (2, 4, 6):
        even = [np.rint(np.linspace(first, 24, m + 1)).astype(int) for first in range(0, 24 - m)]
        even = [grid[at] for at in map(np.unique, even) if len(at) == m + 1]
        plans = [fs.solvers.euler(model, g) for g in even]
        ends = [fs.metrics.run(plan, model, z, state_dtype=torch.float64) for plan in plans]
        errors = [fs.metrics.mse(end, target) for end in ends]
        assert joint.error[m] <= min(median.error[m], *errors) * (1 + 1e-12)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_no_worse_than_the_usual_grids_on_noise_it_never_saw(schedule):
    # Modes that touch: no sample hangs on a knife's edge.
    model, z, grid = problem(schedule, B=48, D=16, N=24, seed=5, std=0.5)
    found = oss(model, z[:24], 6, teacher=taught(model, grid))
    target = fs.metrics.run(found.teacher, model, z[24:])
    for m in range(2, 7):
        ours = fs.metrics.mse(fs.metrics.run(found.plans[m], model, z[24:]), target)
        for spaced in (fs.grids.karras, fs.grids.exponential, fs.grids.uniform):
            usual = fs.solvers.euler(model, spaced(model.schedule, m))
            assert ours < fs.metrics.mse(fs.metrics.run(usual, model, z[24:]), target)


def test_amplitude_is_the_best_scale_of_the_noise():
    """With Gaussian data every step is linear, so that the end points are linear in the scale: the
    plan begins at the optimum.
    """
    draw = np.random.default_rng(4)
    model = Gaussian(np.zeros(6), np.linspace(0.2, 1.5, 6)).model(SCHEDULES["edm"], "x0")
    z, grid = torch.tensor(draw.standard_normal((5, 6))), fs.grids.karras(SCHEDULES["edm"], 16)
    for start in ("free", "fixed"):
        plain, scaled = (
            oss(model, z, 4, teacher=taught(model, grid), start=start, amplitude=a)
            for a in (False, True)
        )
        target = fs.metrics.run(scaled.teacher, model, z)
        for m, plan in scaled.plans.items():
            c, sigma = plan.note["found"]["amplitude"], plan.sigma[1]
            assert plan.M[0, 0, 0] == c * sigma and plain.plans[m].M[0, 0, 0] == sigma and c != 1
            ends = [fs.metrics.run(plan, model, z * f) for f in (0.999, 1.0, 1.001)]
            low, here, high = (fs.metrics.mse(end, target) for end in ends)
            assert here < min(low, high)
            assert here == pytest.approx(scaled.error[m], rel=1e-9)
            assert scaled.error[m] < plain.error[m]
            assert (scaled.indices[m] == plain.indices[m]).all()


def test_median_is_the_middle_of_searches_of_one():
    model, z, grid = problem(B=5)
    for B in (4, 5):
        options = {"teacher": taught(model, grid), "amplitude": False}
        alone = [oss(model, z[b : b + 1], 3, **options) for b in range(B)]
        together = oss(model, z[:B], 3, teacher=taught(model, grid), aggregate="median")
        for m in (1, 2, 3):
            ranked = np.sort([len(grid) - 1 - one.indices[m] for one in alone], axis=0)
            middle = ranked[2] if B == 5 else (ranked[1] + ranked[2]) // 2
            assert (len(grid) - 1 - together.indices[m]).tolist() == middle.tolist()
    lone = oss(model, z[:1], 3, teacher=taught(model, grid), aggregate="median")
    assert lone.error[3] == pytest.approx(alone[0].error[3], rel=1e-9)


def test_ties_go_to_the_noisiest_source():
    """A model of x0 = 0 on powers of two: every jump lands on the teacher to the bit."""
    schedule = fs.schedules.EDM(sigma_max=16.0)
    model = fs.Model(lambda x, t: torch.zeros_like(x), schedule=schedule, prediction="x0")
    plan = fs.solvers.euler(model, [16.0, 8.0, 4.0, 2.0, 1.0, 0.0])
    for start, aggregate in itertools.product(("fixed", "free"), ("joint", "median")):
        found = oss(model, torch.ones(2, 3), 3, teacher=plan, start=start, aggregate=aggregate)
        assert found.error == {1: 0.0, 2: 0.0, 3: 0.0}
        indices = {m: at.tolist() for m, at in found.indices.items()}
        assert indices == {1: [0, 5], 2: [0, 1, 5], 3: [0, 1, 2, 5]}


def test_model_words_follow_their_samples():
    """Words with a batch dimension are cut with the samples, others passed on; guidance equals a
    model that combines its branches.
    """
    schedule, shift = SCHEDULES["flow"], torch.linspace(-1, 1, 6, **TORCH64)
    law, z, grid = problem("flow", "x0", B=6)
    plan = taught(law, grid)

    def fn(x, t, shift, gain):
        return law.fn(x, t) * gain + shift.reshape(-1, 1)

    def fused(x, t, shift):
        zero = torch.zeros(len(x), **TORCH64)
        return 2.5 * fn(x, t, shift, 1.0) + (1 - 2.5) * fn(x, t, zero, 0.8)

    one, two = (fs.Model(f, schedule=schedule, prediction="x0") for f in (fused, fn))
    words = {"cond": {"shift": shift, "gain": 1.0}, "guidance": 2.5}
    words |= {"uncond": {"shift": torch.zeros(6, **TORCH64), "gain": 0.8}}
    whole = oss(one, z, 3, teacher=plan, cond={"shift": shift})
    for batch in (2, 5, 256):
        split = oss(two, z, 3, teacher=plan, batch_size=batch, **words)
        assert split.error == pytest.approx(whole.error, rel=1e-12) and split.nfe == whole.nfe
        assert list(split.indices) == list(whole.indices)
        assert all((split.indices[m] == at).all() for m, at in whole.indices.items())
        assert split.plan.G == 1 and split.plan.note["found"]["guidance"] == 2.5


@pytest.mark.parametrize("teacher", ["heun", "unipc", "euler"])
def test_any_deterministic_plan_teaches(teacher):
    model, z, grid = problem("vp", "eps")
    plan = fs.solvers.SOLVERS[teacher](model, grid)
    found = oss(model, z, 2, teacher=plan, amplitude=False)
    np.testing.assert_array_equal(found.grid, grid)
    assert found.nfe == plan.nfe + found.agreement_nfe + 2 * 7 - 1 - 1
    target, end = (
        fs.metrics.run(one, model, z, state_dtype=torch.float64) for one in (plan, found.plan)
    )
    assert fs.metrics.mse(end, target) == pytest.approx(found.error[2], rel=1e-9)


def test_shape_and_seed_draw_the_noise_and_float32_is_the_default():
    model, _, grid = problem()
    found, again, other = (
        oss(model, (4, 5), 2, teacher=taught(model, grid), seed=seed) for seed in (7, 7, 8)
    )
    assert found.error == again.error != other.error
    noises = [one.plan.note["found"]["noise"] for one in (found, again, other)]
    assert noises[0] == noises[1] != noises[2]
    assert found.plan.note["found"]["seed"] == 7 and found.samples == 4
    exact = oss(model, (4, 5), 2, teacher=taught(model, grid), seed=7, state_dtype=torch.float64)
    assert exact.error != found.error and exact.error == pytest.approx(found.error, rel=1e-4)
    asked = []
    fn = lambda x, t: (asked.append(x.dtype), model.fn(x, t))[1]
    half = fs.Model(fn, schedule=model.schedule, prediction="x0")
    oss(half, torch.ones(2, 5, dtype=torch.bfloat16), 2, teacher=taught(model, grid))
    assert set(asked) == {torch.bfloat16}


def test_states_of_16_bits_are_those_of_32_rounded_once(monkeypatch):
    """The teacher runs in float32, and its agreement is that; the model is given what it was."""
    model, z, grid = problem("vp", "v", B=4)
    first, asked = {}, set()

    def watched(U, c, X, *more):
        first.setdefault(X.dtype, (U[0], X))
        return cost_matrix(U, c, X, *more)

    monkeypatch.setattr(_layers, "cost_matrix", watched)
    # the comparison that is looked at is whole; those of most of a minute are with one solver
    whole = fs.metrics.by_hand
    shorter = lambda model, nfe, solver: whole(model, nfe, solver if nfe == 1 else "euler")
    monkeypatch.setattr(fs.metrics, "by_hand", shorter)
    fn = lambda x, t: (asked.add(x.dtype), model.fn(x, t))[1]
    told = fs.Model(fn, schedule=model.schedule, prediction="v", time=model.time)
    plain, kept = (
        oss(told, z.float(), 3, teacher=grid, held_out=z[:2].float() + 1, state_dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for wide, narrow in zip(*first.values(), strict=True):
        assert torch.equal(wide.bfloat16(), narrow)
    assert asked == {torch.float32} and plain.agreement == kept.agreement
    assert plain.compared[1].by_hand == kept.compared[1].by_hand


def test_provenance():
    model, z, grid = problem()
    found = oss(model, z, 3, teacher=taught(model, grid), seed=5).plans[2].note["found"]
    expected = {
        "method": "oss",
        "N": 7,
        "budget": 2,
        "start": "free",
        "aggregate": "joint",
        "p": 2.0,
        "samples": 3,
        "seed": 5,
        "guidance": None,
    }
    assert expected.items() <= found.items()
    assert {"solver": "dpmpp_3m", "nfe": 7}.items() <= found["teacher"].items()
    assert found["compared"] == "not compared"
    assert found["start_label"] == grid[found["indices"][0]]
    assert found["error"] > 0 and "seconds" not in found


def test_plans_are_saved_whole(tmp_path):
    model, z, grid = problem()
    found = oss(model, z, 3, teacher=taught(model, grid))
    paths = found.save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["plan-1.fsplan", "plan-2.fsplan", "plan-3.fsplan"]
    assert fs.Plan.load(paths[1]).to_bytes() == found.plans[2].to_bytes()
    assert found.plan is found.plans[3] and "evaluations a sample" in repr(found)


def test_progress_counts_every_row(capsys):
    model, z, grid = problem()
    oss(model, z, 3, teacher=taught(model, grid), progress=True)
    total = len(z) * (7 + (7 + 13) + 3 * 7 - 3 - 1 + 2 * (1 + 2 + 3))
    assert f"{total}/{total}" in capsys.readouterr().err
