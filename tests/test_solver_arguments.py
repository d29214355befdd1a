"""Solvers: jumps, compat, what other libraries break on, and every refusal."""

import numpy as np
import pytest

from fastsample import grids
from fastsample.model import Model
from fastsample.plan import PlanError
from fastsample.schedules import EDM, VP, DiscreteVP, Flow, TrigFlow
from fastsample.solvers import JUMPS, SOLVERS, jump
from fastsample.solvers._begin import COMPAT

EPS = np.finfo(np.float64).eps
SD = DiscreteVP.scaled_linear()


def terms(plan, row):
    """{operand: coefficient} of x' in a row, zeros left out."""
    return {
        plan.operand(k): c
        for k in range(plan.W)
        if (plan.reads[row] >> k) & 1 and (c := plan.M[row, 0, k]) != 0.0
    }


@pytest.mark.parametrize("name", JUMPS)
@pytest.mark.parametrize(
    "schedule",
    [VP(), SD.zero_terminal_snr(), EDM(), Flow(3.0), TrigFlow(0.5)],
    ids=lambda s: type(s).__name__,
)
def test_jump_is_the_row(name, schedule):
    grid = grids.karras(schedule, 7)
    a, b = JUMPS[name](schedule, grid[:-1], grid[1:])
    plan = SOLVERS[name](schedule, grid, prediction="v")
    for i in range(7):
        row = terms(plan, i + 1)
        x, m = row.get("x", 0.0), row["m"]
        if plan.stored == "flow":  # m = (x - (alpha + sigma) x0)/sigma
            alpha, sigma = schedule.alpha(grid[i]), schedule.sigma(grid[i])
            x, m = x + m / sigma, -m * (alpha + sigma) / sigma
        assert abs(x - a[i]) <= 32 * EPS * max(1.0, abs(row.get("x", 0.0)))
        assert abs(m - b[i]) <= 32 * EPS


def test_jump_broadcasts():
    a, b = jump(EDM(), np.array([[4.0], [2.0]]), np.array([2.0, 0.0]))
    assert np.abs(a - [[0.5, 0.0], [1.0, 0.0]]).max() <= EPS
    assert np.abs(b - [[0.5, 1.0], [0.0, 1.0]]).max() <= 4 * EPS
    assert np.isfinite(np.array(jump(Flow(), 1.0, [1.0, 0.5, 0.0]))).all()


# of each solver, the libraries whose rows are not the exact ones
DIFFERS = {
    "dpmpp_3m": {"diffusers", "k-diffusion", "comfyui"},
    "dpmpp_2m": {"diffusers"},
    "dpmpp_2s": {"diffusers"},
    "dpmpp_3s": {"diffusers"},
    "dpm_solver_singlestep": {"diffusers"},
    "er_sde": {"comfyui"},
    "dpmpp_3m_sde": {"diffusers", "k-diffusion", "comfyui"},
    "dpm_solver": {"diffusers"},
    "deis": {"diffusers"},
    "ipndm_v": {"comfyui"},
    "sa_solver": {"diffusers"},
    "dpmpp_sde": {"diffusers", "k-diffusion", "comfyui"},
}


# of those, and of others, what differs on a flow beside
ON_FLOW = {name: {"comfyui"} for name in ("dpmpp_2m", "res_multistep", "dpmpp_2s_ancestral")}


@pytest.mark.parametrize("schedule, more", [(EDM(), {}), (Flow(), ON_FLOW)])
def test_compat_changes_what_it_says(schedule, more):
    grid = grids.karras(schedule, 6, end="min")
    for name in SOLVERS:
        rows = {c: SOLVERS[name](schedule, grid, prediction="v", compat=c).M for c in COMPAT}
        differs = {c for c in COMPAT if not np.array_equal(rows[c], rows["exact"])}
        assert differs == DIFFERS.get(name, set()) | more.get(name, set()), name


@pytest.mark.parametrize("end", ["zero", "min"])
@pytest.mark.parametrize("n", [2, 14, 15, 40])
def test_what_breaks_in_other_libraries(n, end):
    """UniPC with bh1 or a full order into sigma = 0 (NaN, singular), and order 3 with an end at
    sigma_min from n = 15 on (NaN).
    """
    grid = grids.karras(SD, n, end=end)
    for name, options in (
        ("unipc", {"variant": "bh1", "lower_order_final": False}),
        ("unipc", {"variant": "bh2"}),
        ("dpmpp_3m", {}),
    ):
        plan = SOLVERS[name](SD, grid, prediction="eps", **options)
        assert plan.nfe == n
        assert np.abs(plan.M).max() < 50.0


FULL, LOW = [1, 2, 3, 3, 3, 3], [1, 2, 3, 3, 2, 1]


@pytest.mark.parametrize(
    ("name", "options", "orders"),
    [
        ("dpmpp_2m", {}, [1, 2, 2, 2, 2, 2]),
        ("dpmpp_2m", {"lower_order_final": True}, [1, 2, 2, 2, 2, 1]),
        ("dpmpp_2m", {"compat": "diffusers"}, [1, 2, 2, 2, 2, 1]),
        ("dpmpp_3m", {}, FULL),
        ("dpmpp_3m", {"lower_order_final": True}, LOW),
        ("dpmpp_3m", {"compat": "diffusers"}, LOW),
        ("dpmpp_3m", {"compat": "k-diffusion"}, FULL),
        ("unipc", {}, LOW),
        ("unipc", {"lower_order_final": False}, FULL),
        ("unipc", {"order": 2, "lower_order_final": False}, [1, 2, 2, 2, 2, 2]),
        ("dpmpp_2s", {}, [2] * 6),
        ("heun", {}, [2] * 6),
    ],
)
def test_orders_of_the_steps(name, options, orders):
    """What the note says, which outputs the rows read, and the one order a step to sigma = 0 can
    have.
    """
    grid = grids.karras(EDM(), 6, end="min")
    plan = SOLVERS[name](EDM(), grid, prediction="x0", **options)
    assert plan.note["orders"] == orders
    if name.startswith("dpmpp") and name != "dpmpp_2s":
        assert [sum(key[0] in "mr" for key in terms(plan, row)) for row in range(1, 7)] == orders
    to_zero = SOLVERS[name](EDM(), np.append(grid[:-1], 0.0), prediction="x0", **options)
    assert to_zero.note["orders"] == [*orders[:-1], 1]
    assert terms(to_zero, to_zero.rows - 2) == {"m": 1.0}


def test_remake_keeps_every_option():
    model = Model(None, SD, "v", time=0.5, model_id="m")
    plan = SOLVERS["ddim"](
        model, grids.trailing(SD, 5), eta=0.5, inpaint=True, clip=1.5, compat="diffusers"
    )
    assert plan.remake(start=None).to_bytes() == plan.to_bytes()
    again = plan.remake(start=2)
    assert (
        again.nfe,
        again.note["inpaint"],
        again.note["clip"],
        again.note["arguments"]["eta"],
    ) == (3, True, 1.5, 0.5)
    assert (again.clip[1:-1] == 1.5).all()


@pytest.mark.parametrize("kind", [float, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("strength", [0.15, 0.3, 0.7, 1.0])
def test_a_strength_is_a_strength_in_every_float(kind, strength):
    grid = grids.karras(EDM(), 10)
    plan = SOLVERS["ddim"](EDM(), grid, prediction="x0", strength=kind(strength))
    assert plan.note["start"] == 10 - int(10 * strength)


HOSTILE = [
    ("solver", [1]),
    ("schedule", [1]),
    ("schedule", {"name": ["VP"]}),
    ("schedule", "["),
    ("grid", None),
    ("grid", [[1]]),
    ("grid", ["x", 0.0]),
    ("model", [1]),
    ("model", {"time": [1]}),
    ("model", {"time": 10**400}),
    ("prediction", {}),
    ("arguments", [1]),
    ("arguments", {"start": 1}),
    ("arguments", {"key": 1}),
    ("arguments", {"eta": {}}),
    ("inpaint", [[1]]),
    ("clip", "x"),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_remake_names_what_is_wrong_in_a_note_from_elsewhere(key, value):
    plan = SOLVERS["ddim"](VP(), grids.karras(VP(), 4), prediction="eps").with_note(**{key: value})
    error = ValueError if key == "solver" else PlanError
    with pytest.raises(
        error, match=rf"^remake: (the note's )?{key}.*accepted|^remake: the note's {key}: .*JSON"
    ) as caught:
        plan.remake(start=1)
    assert "\n" not in str(caught.value)


def test_remake_does_not_blame_the_note_for_start():
    with pytest.raises(ValueError, match="^start: 9 for a grid of 4 steps"):
        SOLVERS["ddim"](VP(), grids.karras(VP(), 4), prediction="eps").remake(start=9)


BAD = [
    ("ddim", {"eta": -0.1}, "ddim: eta = -0.1; a number from 0 to 1"),
    ("ddim", {"eta": np.nan}, "ddim: eta = nan"),
    ("ddim", {"prediction": None}, "prediction: none given with a schedule"),
    ("ddim", {"prediction": "noise"}, "prediction = 'noise'"),
    ("ddim", {"grid": [1.0, 2.0, 0.0]}, "grid: entry 1 is 2 after 1"),
    ("ddim", {"grid": [np.nan, 0.0]}, "1 NaN"),
    ("ddim", {"grid": [4.0]}, "grid: 1 times"),
    ("ddim", {"start": 2}, "start: 2 for a grid of 2 steps"),
    ("ddim", {"start": -1}, "start: -1"),
    ("ddim", {"start": 1.5}, "start: 1.5"),
    ("ddim", {"compat": "comfy"}, "compat = 'comfy'; one of exact, diffusers, k-diffusion"),
    ("ddim", {"clip": -1.0}, "clip = -1.0"),
    ("euler_ancestral", {"eta": -1}, "euler_ancestral: eta = -1"),
    ("euler_ancestral", {"s_noise": np.inf}, "s_noise = inf"),
    ("euler_ancestral", {"eta": 10**400}, "euler_ancestral: eta = 1000"),
    ("heun", {"space": "x"}, "heun: space = 'x'; one of rho, flow"),
    ("heun", {"space": "flow", "s_churn": 3.0}, "s_churn = 3 in flow space"),
    ("heun", {"s_churn": -1.0}, "heun: s_churn = -1.0"),
    ("heun", {"space": "flow", "clip": 1.0}, "clip: 1.0 on the stored kind 'flow'"),
    ("dpmpp_2s", {"r": 1.0}, "dpmpp_2s: r = 1"),
    ("dpmpp_2s", {"r": -0.5}, "dpmpp_2s: r = -0.5"),
    ("dpmpp_2s", {"variant": "heun"}, "dpmpp_2s: variant = 'heun'; one of dpmsolver, taylor"),
    ("dpmpp_3s", {"r1": 0.7}, "dpmpp_3s: r1 = 0.7 beside r2 = 0.666667; r1 < r2 is accepted"),
    ("dpmpp_3s", {"r2": 1.0}, r"dpmpp_3s: r2 = 1; a number inside \(0, 1\) is accepted"),
    ("dpm_solver_singlestep", {"order": 4}, "dpm_solver_singlestep: order = 4; one of 1, 2, 3"),
    ("dpm_solver_singlestep", {"nfe": 0}, "nfe = 0; a whole number from 1 up is accepted"),
    (
        "dpm_solver_singlestep",
        {"nfe": 9},
        "nfe = 9 of order 3 takes a grid of 4 steps, not 2; nfe = 3 to 5 is accepted",
    ),
    ("dpm_solver_singlestep", {"nfe": 2, "order": 2}, "of 1 steps, not 2; nfe = 3 to 4 is acc"),
    ("dpm_solver_singlestep", {"nfe": 3, "order": 1}, "of 3 steps, not 2; nfe = 2 is accepted"),
    (
        "dpm_solver_singlestep",
        {"nfe": 2, "compat": "diffusers"},
        "nfe = 2 with compat = 'diffusers', which makes one evaluation a step; None is accepted",
    ),
    ("dpm_2", {"space": "x"}, "dpm_2: space = 'x'; one of rho, flow"),
    ("dpm_2", {"space": "flow", "s_churn": 3.0}, "dpm_2: s_churn = 3 in flow space"),
    ("heunpp2", {"s_churn": -1.0}, "heunpp2: s_churn = -1.0; a number from 0 up is accepted"),
    ("dpm_fast", {"nfe": 2.5}, "dpm_fast: nfe = 2.5; a whole number from 1 up is accepted"),
    ("dpm_fast", {"eta": -1.0}, "dpm_fast: eta = -1.0; a number from 0 up is accepted"),
    ("dpm_fast", {"s_noise": "x"}, "dpm_fast: s_noise = 'x'; a number from 0 up is accepted"),
    ("dpmpp_2m", {"variant": "bh1"}, "dpmpp_2m: variant = 'bh1'; one of midpoint, heun"),
    ("dpmpp_2m_sde", {"eta": "1"}, "dpmpp_2m_sde: eta = '1'"),
    ("unipc", {"order": 5}, "unipc: order = 5; one of 1, 2, 3, 4"),
    ("unipc", {"order": True}, "unipc: order = True"),
    ("unipc", {"variant": "bh3"}, "unipc: variant = 'bh3'"),
    ("lcm", {"boundary": True}, "lcm: boundary = True on EDM"),
    ("cm", {"sigma_data": 0.0}, "cm: sigma_data = 0; a number > 0"),
    ("cm", {"sigma_min": -1.0}, "cm: sigma_min = -1.0; a number from 0 up"),
    ("res_multistep_ancestral", {"eta": -1.0}, "res_multistep_ancestral: eta = -1.0; a number"),
    ("res_multistep_cfgpp", {"s_noise": "x"}, "res_multistep_cfgpp: s_noise = 'x'"),
    ("gradient_estimation_cfgpp", {"gamma": 6.0}, "gradient_estimation_cfgpp: gamma = 6.0; a num"),
    ("dpm_2_ancestral", {"eta": -1.0}, "dpm_2_ancestral: eta = -1.0; a number from 0 up"),
    ("dpmpp_2s_ancestral", {"s_noise": "x"}, "dpmpp_2s_ancestral: s_noise = 'x'"),
    ("dpmpp_sde", {"r": 0.0}, "dpmpp_sde: r = 0.0; a number above 0 and up to 1"),
    ("dpmpp_sde", {"eta": -1.0}, "dpmpp_sde: eta = -1.0"),
    ("seeds_2", {"r": 1.5}, "seeds_2: r = 1.5; a number above 0 and up to 1"),
    ("seeds_2", {"variant": "phi_3"}, "seeds_2: variant = 'phi_3'; one of phi_1, phi_2"),
    ("seeds_3", {"r1": 0.7}, "seeds_3: r1 = 0.7; a number above 0 and below 0.666667"),
    (
        "ddpm",
        {"variance": "learned"},
        "ddpm: variance = 'learned'; one of fixed_small, fixed_large",
    ),
    ("tcd", {"gamma": 1.5}, "tcd: gamma = 1.5; a number from 0 to 1"),
    ("flow_sde", {"a": -0.1}, "flow_sde: a = -0.1; a number from 0 up"),
    ("er_sde", {"order": 4}, "er_sde: order = 4; one of 1, 2, 3"),
    ("er_sde", {"eta": -1.0}, "er_sde: eta = -1.0; a number from 0 up"),
    ("seeds_3", {"r2": 1.0}, "seeds_3: r2 = 1.0; a number above 0 and below 1"),
]


@pytest.mark.parametrize(("name", "options", "sentence"), BAD)
def test_bad_input_is_refused(name, options, sentence):
    options = {"prediction": "x0", "grid": [4.0, 2.0, 0.0], **options}
    with pytest.raises(ValueError, match=sentence):
        SOLVERS[name](EDM(), **options)


@pytest.mark.parametrize("order, budgets", [(1, [2]), (2, [3, 4]), (3, [3, 4, 5])])
def test_the_budgets_that_a_sentence_accepts_are(order, budgets):
    """And are met, on a grid without an end of infinite h."""
    for nfe in budgets:
        for name, words in (("dpm_solver_singlestep", {"order": order}), ("dpm_fast", {})):
            if name == "dpm_solver_singlestep" or order == 3:
                plan = SOLVERS[name](EDM(), [4.0, 2.0, 1.0], prediction="x0", nfe=nfe, **words)
                assert plan.nfe == sum(plan.note["orders"]) == nfe
                assert plan.remake(1).nfe == plan.note["orders"][1]


def test_refused_at_alpha_zero():
    with pytest.raises(ValueError, match="prediction 'eps' at alpha = 0; another prediction"):
        SOLVERS["dpmpp_2m"](Flow(), [1.0, 0.5, 0.0], prediction="eps")
    with pytest.raises(ValueError, match="space = 'rho' on a grid that starts at alpha = 0"):
        SOLVERS["heun"](Flow(), [1.0, 0.5, 0.0], prediction="flow", space="rho")
    for name in ("euler_ancestral", "dpm_fast"):
        with pytest.raises(ValueError, match=f"{name}: eta on Flow = 1.5"):
            SOLVERS[name](Flow(), [1.0, 0.5, 0.0], prediction="flow", eta=1.5)
    with pytest.raises(
        ValueError, match="prediction: 'v' given beside a Model that predicts 'flow'"
    ):
        SOLVERS["ddim"](Model(None, Flow(), "flow"), [1.0, 0.0], prediction="v")


def test_noise_scale_leaves_the_schedule_by_design():
    for name in ("euler_ancestral", "dpmpp_2m_sde"):
        assert (
            SOLVERS[name](EDM(), [4.0, 2.0, 0.0], prediction="x0", s_noise=1.1).note["consistent"]
            is False
        )
    assert (
        SOLVERS["heun"](EDM(), [4.0, 2.0, 0.0], prediction="x0", s_noise=1.1, s_churn=1.0).note[
            "consistent"
        ]
        is False
    )
