"""Builder as a user meets it: a solver of their own, rows with several branches, models and model
scalars, and operands that are read before they have a coefficient.
"""

from __future__ import annotations

import inspect
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interpreter import run

import fastsample as fs
from fastsample import solvers
from fastsample.guidance import guided
from fastsample.model import Model, to_x0
from fastsample.schedules import EDM, VP, Flow
from fastsample.solvers import Builder, F, M, N, R, X, _build

FLOW, Z = Flow(), np.linspace(-2.0, 2.0, 7)
GRID = fs.grids.uniform(FLOW, 4)


@pytest.fixture
def registry(monkeypatch):
    """SOLVERS and JUMPS that a test may add to."""
    for name in ("SOLVERS", "JUMPS"):
        monkeypatch.setattr(solvers, name, dict(getattr(solvers, name)))


# -- a solver of their own -------------------------------------------------------------------------
def test_the_solver_of_the_docstring_is_one_of_the_registry(registry):
    """Its text as it stands there: it is DDIM, has remake, and is searched for, by the median
    form too once it has a jump.
    """
    text = inspect.getdoc(_build).split("a Plan::\n")[1].split("\nX is the state")[0]
    words = {"Builder": Builder, "M": M, "X": X, "register": solvers.register}
    exec(textwrap.dedent(text).replace("[...]", "[]"), words)
    model = Model(lambda x, t: 0.5 * x, FLOW, "flow")
    for options in ({}, {"start": 1}, {"inpaint": True, "clip": 2.0}):
        plan = solvers.SOLVERS["mine"](model, GRID, **options)
        same = solvers.ddim(model, GRID, **options)
        assert plan.program == same.program or plan.note["inpaint"]  # where 0·x is read
        np.testing.assert_allclose(plan.M, same.M, rtol=0, atol=4 * np.finfo(float).eps)
    plan = words["mine"](model, GRID)
    assert plan.remake(2) == words["mine"](model, GRID, start=2) and plan.remake(None) == plan
    search = lambda s, **words: fs.optimize.oss(
        model, (2, 3), 2, solver=s, teacher=4, seed=1, **words
    )
    read = search("mine")  # off its plans
    with pytest.raises(ValueError, match="solver='mine', whose jumps .*; 'ddim' or 'euler', or"):
        search("mine", aggregate="median")
    del solvers.SOLVERS["mine"]
    solvers.register("mine", words["mine"], jump=solvers.jump)
    found = [search(s) for s in ("mine", "ddim")]
    assert found[0].plans[2].note["solver"] == "mine" and found[0].error == found[1].error
    assert found[0].error == pytest.approx(read.error, rel=1e-5)
    median = [search(s, aggregate="median") for s in ("mine", "ddim")]
    assert median[0].error == median[1].error


def test_arguments_of_ones_own_come_back(registry):
    def lazy(model, grid, *, prediction=None, start=None, share=1.0):
        b = Builder(model, grid, prediction=prediction, start=start)
        for i in range(b.n):
            kept = b.sigma[i + 1] / b.sigma[i] * share
            x = kept * X + (b.alpha[i + 1] - kept * b.alpha[i]) * M
            b.row(b.t[i], to=b.t[i + 1], x=x)
        return b.build("lazy", arguments={"share": share}, consistent=share == 1.0)

    solvers.register("lazy", lazy)
    plan = lazy(FLOW, GRID, prediction="flow", share=0.5)
    assert plan.remake(1) == lazy(FLOW, GRID, prediction="flow", share=0.5, start=1)
    assert plan.note["consistent"] is False and plan.consistency() > 0.01


@pytest.mark.parametrize(
    "name, maker, error, sentence",
    [
        ("euler", print, ValueError, "register: name = 'euler'; a name that no solver has"),
        ("", print, ValueError, "register: name = ''; a name"),
        (3, print, ValueError, "register: name = 3; a name"),
        ("mine", "euler", TypeError, "register: maker is a str; a function is accepted"),
    ],
)
def test_register_refuses(registry, name, maker, error, sentence):
    with pytest.raises(error, match=sentence):
        solvers.register(name, maker)
    assert list(solvers.SOLVERS) == [name for name in solvers.__all__ if name in solvers.SOLVERS]


# -- branches --------------------------------------------------------------------------------------
@given(
    st.integers(2, 4),
    st.none() | st.tuples(st.floats(-3, 0), st.floats(0.1, 3)),
    st.booleans(),
)
def test_a_guided_plan_made_directly_is_the_guided_plan(branches, interval, inpaint):
    """2M of G branches and G - 1 scales, f_G + sum_k s_k (f_k - f_G), in an interval."""
    plain = solvers.dpmpp_2m(FLOW, GRID, prediction="v", inpaint=inpaint)
    want, G = guided(plain, branches, interval), branches
    low, high = interval or (-np.inf, np.inf)
    b = Builder(FLOW, GRID, prediction="v", inpaint=inpaint)
    for i in range(b.n):
        x, at = plain.M[1 + i, 0], plain.layout
        step = x[0] * X + x[at.m] * M if plain.program.rows[1 + i].reads & 1 else x[at.m] * M
        if plain.program.rows[1 + i].slots_read(at):
            step = step + x[at.slot(0)] * R(f"m{i - 1}")
        words = {"U": [1.0]}
        if low <= b.half_log_snr[i] <= high:
            V = [[float(k == g) for k in range(G - 1)] for g in range(G - 1)]
            words = {"U": [0.0] * (G - 1) + [1.0], "V": [*V, [-1.0] * (G - 1)]}
        b.row(b.t[i], to=b.t[i + 1], x=step, keep={f"m{i}": M}, **words)
    made = b.build("dpmpp_2m")
    for name, array in want.padded(**made.layout._asdict()).numbers().items():
        assert np.array_equal(made.numbers()[name], array), name
    inside = (b.half_log_snr[:-1] >= low) & (b.half_log_snr[:-1] <= high)
    assert made.dims == want.dims if inside.any() else made.G == 1


def test_a_raw_branch_is_an_operand():
    """Euler CFG++ (Chung et al. 2024, eq. 12): the guided x0 and the unconditional eps."""
    schedule = EDM()
    b = Builder(schedule, [8.0, 4.0, 2.0, 0.0], prediction="eps")
    for i in range(b.n):
        step = b.alpha[i + 1] * M + b.sigma[i + 1] * F(1) if b.sigma[i + 1] else M
        b.row(b.t[i], to=b.t[i + 1], x=step, U=[0, 1], V=[[1], [-1]])
    plan = b.build("euler_cfg_pp", order=1)
    both = lambda x, t, row, call: [np.tanh(x), 0.5 * np.sin(x)]
    x = 8.0 * Z
    for sigma, after in ((8.0, 4.0), (4.0, 2.0), (2.0, 0.0)):
        cond, uncond = both(x, None, 0, 0)
        x = x - sigma * (uncond + 1.5 * (cond - uncond)) + after * uncond
    np.testing.assert_allclose(run(plan, Z, both, scale=[1.5]), x, rtol=1e-14, atol=1e-14)
    assert [shape.reads_operand(plan.layout.branch(1)) for shape in plan.program.rows] == [
        *(False, True, True),
        *(False, False),
    ]


# -- two times, two models -------------------------------------------------------------------------
def mean_flow(model, grid, *, prediction=None, start=None):
    """x_r = x_t - (t - r)·u(x_t, r, t): a flow map, told both times (Geng et al. 2025,
    arXiv:2505.13447, eq. 12).
    """
    b = Builder(model, grid, prediction=prediction, stored="flow", start=start)
    for t, r in zip(b.t[:-1], b.t[1:], strict=True):
        b.row(t, to=r, x=X - (t - r) * M, scalars=b.model.times([r]))
    return b.build("mean_flow", order=1, citations=["Geng et al. 2025, arXiv:2505.13447, eq. 12"])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_flow_map_of_two_times_is_exact_in_any_number_of_steps(n):
    """Data N(0, 1/4): the flow carries x_t to x_r = x_t·sqrt(v(r)/v(t)), v(t) = (1-t)²/4 + t², and
    u is the mean velocity in between.
    """
    variance, told = lambda t: (1 - t) ** 2 / 4 + t**2, []

    def u(x, t, row, call):
        told.append(t.tolist())
        t, r = t / 1000
        return [x * (1 - np.sqrt(variance(r) / variance(t))) / (t - r)]

    plan = mean_flow(Model(None, FLOW, "flow", time=1000), np.linspace(1.0, 0.0, n + 1))
    assert (plan.E, plan.S, plan.nfe) == (2, 0, n) and plan.consistency() < 1e-15
    np.testing.assert_allclose(run(plan, Z, u), Z / 2, rtol=1e-14, atol=0)
    grid = 1000 * np.linspace(1.0, 0.0, n + 1)
    assert told == np.stack([grid[:-1], grid[1:]], 1).tolist()


def test_each_row_asks_the_model_it_names():
    """eps above the middle of the grid, v with other times and input scales below: the samples of
    one x0 network.
    """
    schedule = VP()
    grid = fs.grids.karras(schedule, 4, end="min")
    pair = [Model(None, schedule, "eps"), Model(None, schedule, "v", time=7.0, input_scale="vp")]
    b = Builder(pair, grid)
    for i in range(b.n):
        a = b.sigma[i + 1] / b.sigma[i]
        step = a * X + (b.alpha[i + 1] - a * b.alpha[i]) * M
        b.row(b.t[i], to=b.t[i + 1], x=step, call=i // 2)
    plan = b.build("two")
    assert plan.call.tolist() == [-1, 0, 0, 1, 1, -1]
    assert [words["prediction"] for words in plan.note["models"]] == ["eps", "v"]
    assert plan.t[:4, 0].tolist() == [*pair[0].times(grid[:2]), *pair[1].times(grid[2:4])]

    def answer(kinds):
        def model(x, t, row, call):
            alpha, sigma = schedule.alpha(grid[row - 1]), schedule.sigma(grid[row - 1])
            x = x / (pair[call].scales(grid[row - 1 : row])[0] if kinds == ("eps", "v") else 1.0)
            p, q = to_x0(kinds[call], alpha, sigma)
            return [(np.tanh(x) - p * x) / q]

        return model

    want = run(solvers.ddim(schedule, grid, prediction="x0"), Z, answer(("x0",)))
    np.testing.assert_allclose(run(plan, Z, answer(("eps", "v"))), want, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="solver = 'two'"):
        plan.remake(1)
    with pytest.raises(ValueError, match="remake: the plan asks several models"):
        plan.with_note(solver="ddim").remake(1)


# -- learned columns -------------------------------------------------------------------------------
def test_what_is_to_be_learned_is_read_from_the_start():
    """Two earlier predictions and a noise of coefficient 0: kept, read, and then given numbers
    without a word about reads.
    """
    b = Builder(FLOW, GRID, prediction="flow", stored="flow")
    for i in range(b.n):
        learned = sum((R(f"m{j}") for j in range(max(0, i - 2), i)), N(i + 1))
        step = X + float(b.t[i + 1] - b.t[i]) * M
        b.row(b.t[i], to=b.t[i + 1], x=step, keep={f"m{i}": M}, reads=learned)
    plan, euler = b.build("learned"), solvers.euler(FLOW, GRID, prediction="flow")
    at = plan.layout
    assert (at.S, at.L) == (2, 1) and plan.ids[:, 0].tolist() == [-1, 1, 2, 3, 4, -1]
    assert [len(row.slots_read(at)) for row in plan.program.rows] == [0, 0, 1, 2, 2, 0]
    model, noise = lambda x, t, row, call: [np.tanh(x) * t[0]], lambda k: np.cos(k * Z)
    assert np.array_equal(run(plan, Z, model, noise), run(euler, Z, model))
    table = plan.M.copy()
    table[3, 0, [at.slot(0), at.slot(1), at.noise(0)]] = 0.25, -0.125, 0.5
    taught, trace, base = plan.with_numbers(M=table), [], []
    run(taught, Z, model, noise, trace=trace)
    run(plan, Z, model, noise, trace=base)
    m = [np.tanh(base[i][0]) * GRID[i] for i in range(2)]
    kept = dict(zip(plan.dst[1:3, 0].tolist(), m, strict=True))
    want = base[3][0] + 0.25 * kept[0] - 0.125 * kept[1] + 0.5 * noise(3)
    np.testing.assert_allclose(trace[3][0], want, rtol=1e-14, atol=1e-14)
    assert taught.note["consistent"] is False and (taught.reads == plan.reads).all()


# -- refusals --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "words, sentence",
    [
        ({"call": 1}, "row: call = 1; 0 to 0 is accepted"),
        ({"U": []}, "row: U weighs 0 branches and V 0; one or more"),
        ({"U": [0, 1], "V": [[1]]}, "row: U weighs 2 branches and V 1; .* as many in V"),
        ({"scalars": [1.0]}, "row: 1 scalars beside the time, where the row before has 0"),
    ],
)
def test_rows_that_do_not_fit_are_refused(words, sentence):
    b = Builder(FLOW, GRID, prediction="flow")
    b.row(b.t[0], to=b.t[1], x=X)
    with pytest.raises(ValueError, match=sentence):
        b.row(b.t[1], to=b.t[2], x=X, **words)


@pytest.mark.parametrize(
    "model, grid, sentence",
    [
        ([], GRID, "model: an empty list"),
        ([Model(None, FLOW, "flow"), Model(None, Flow(3.0), "flow")], GRID, "on unlike schedules"),
        (FLOW, [0.0, 1.0], r"grid: \[0.0, 1.0\] is not one list of finite times that never rise"),
        (FLOW, [[1.0, 0.0]], "is not one list of finite times"),
        (FLOW, [1.0, np.nan], "is not one list of finite times"),
        (FLOW, [1.0], "leave 0 steps"),
    ],
)
def test_what_no_rows_can_be_made_of_is_refused(model, grid, sentence):
    with pytest.raises(ValueError, match=sentence):
        Builder(model, grid, prediction=None if isinstance(model, list) else "flow")
