"""What rounding alone puts outside a range is its edge, wherever a number of a schedule, a grid, a
level or a share is checked; what is further out is refused.
"""

import math

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import grids, solvers
from fastsample.plan.given import edged, within
from fastsample.schedules import EDM, VE, VP, DiscreteVP, Flow, TrigFlow

SD = DiscreteVP.scaled_linear()
ULP = float(np.finfo(np.float32).eps)
TOO_FAR = 1e-5  # relative; the sixth digit's half unit is 5e-6 at most

# a schedule, its noise end as somebody has it, and which edge that is
BEYOND = [
    (TrigFlow(), 1.57080, math.pi / 2),
    (TrigFlow(), torch.tensor([math.pi / 2]), math.pi / 2),
    (TrigFlow(), np.float32(math.pi / 2), math.pi / 2),
    (TrigFlow(), -(2.0**-24), 0.0),
    (Flow(), 1 + ULP, 1.0),
    (Flow(3.0), torch.tensor(1 + ULP), 1.0),
    (Flow(), -ULP, 0.0),
    (VP(), 1.0000001, 1.0),
    (VP(), np.float32(-1e-7), 0.0),
    (SD, 999.0001, 999.0),
    (SD, np.nextafter(np.float32(999), np.float32(2000)), 999.0),
    (SD, -1.0000001, -1.0),
    (VE(), 1 + 3 * ULP, 1.0),
    (VE(), -1 - ULP, -1.0),
    (EDM(), -1e-7, 0.0),
    (DiscreteVP.linear().zero_terminal_snr(), 999.0001, 999.0),
]


@pytest.mark.parametrize(("schedule", "t", "edge"), BEYOND, ids=str)
def test_a_schedule_takes_it_as_the_edge(schedule, t, edge):
    for what in ("alpha", "sigma", "half_log_snr", "label"):
        found, right = getattr(schedule, what)(t), getattr(schedule, what)(edge)
        assert np.all(found == right), what
    assert np.all(fs.Model(None, schedule, "x0", time=7.0).times(t) == 7 * schedule.label(edge))


@pytest.mark.parametrize(("schedule", "t", "edge"), BEYOND, ids=str)
def test_a_grid_has_the_edge_itself(schedule, t, edge):
    middle = 0.5 * (schedule.t_min + schedule.t_max)
    value = float(np.float64(np.asarray(t).reshape(-1)[0]))
    given = [value, middle] if edge > middle else [middle, value]
    for made in (
        grids.check(schedule, given),
        grids.from_timesteps(schedule, given, end="keep"),
        np.array(solvers.Builder(schedule, given, prediction="x0").t),
    ):
        assert edge in made and middle in made and len(made) == 2
    if edge == schedule.t_zero:  # the end is there already
        assert len(grids.from_timesteps(schedule, given)) == 2


@pytest.mark.parametrize(("schedule", "t", "edge"), BEYOND, ids=str)
def test_further_out_is_refused(schedule, t, edge):
    out = TOO_FAR * (abs(edge) or 1.0)
    far = edge + out if edge > 0.5 * schedule.t_max else edge - out
    for what in ("alpha", "half_log_snr", "label"):
        name = "(label|sigma)" if what == "label" else what  # that of a flow is its sigma
        with pytest.raises(ValueError, match=rf"\.{name}: t = .*; .* <= t <= .* is accepted"):
            getattr(schedule, what)(far)


def test_trigflows_published_times_run():
    """Two steps from 1.57080 over 1.3, equal to a float64 loop from pi/2."""
    schedule, z = TrigFlow(), torch.randn(2, 64, dtype=torch.float64)
    told = []

    def fn(x, t):
        told.append(t.double().tolist())
        return 0.3 * x + 0.1

    model = fs.Model(fn, schedule, "trigflow")
    grid = grids.from_timesteps(schedule, [1.57080, 1.3])
    plan = solvers.ddim(model, grid)
    end = fs.Sampler(plan, model)(noise=z)
    x, times = z.clone(), [math.pi / 2, 1.3, 0.0]
    for s, t in zip(times[:-1], times[1:], strict=True):
        x = math.cos(s - t) * x - math.sin(s - t) * (0.3 * x + 0.1)
    assert (end - x).abs().max() < 1e-14
    assert told[0] == [math.pi / 2] * 2


def test_lists_of_noise_levels():
    for low in (-1e-7, -0.0, 0.0):
        assert grids.from_sigmas(EDM(), [3.0, 1.0, low])[-1] == 0.0
        assert grids.from_sigmas(Flow(), np.float32([1, 0.5, low]))[-1] == 0.0
    top = float(np.exp(-SD.half_log_snr(999)))
    assert grids.from_sigmas(SD, [np.float32(top) * (1 + ULP), 1.0, 0.0])[0] == 999.0
    assert grids.from_sigmas(Flow(3.0), torch.tensor([1 + ULP, 0.5, 0.0]))[0] == 1.0
    for far in (-1e-5, -1.0):
        with pytest.raises(ValueError, match="is negative; levels from 0 up"):
            grids.from_sigmas(EDM(), [3.0, 1.0, far])


def test_a_level_of_the_table_through_float32_is_a_time_of_it():
    first, last = (float(SD.half_log_snr(t)) for t in (0.0, 999.0))
    assert SD.time(np.float32(last)) == pytest.approx(999.0, abs=1e-4)
    assert SD.time(last - 2 * ULP * abs(last)) == 999.0
    assert SD.time(first) == 0.0
    with pytest.raises(ValueError, match="DiscreteVP.time: half_log_snr = "):
        SD.time(last * (1 + TOO_FAR))


@pytest.mark.parametrize(
    ("make", "edge"),
    [
        (lambda v: solvers.ddim(EDM(), [3.0, 1.0, 0.0], prediction="x0", eta=v), 1.0),
        (lambda v: solvers.ddim(EDM(), [3.0, 1.0, 0.0], prediction="x0", strength=v), 1.0),
        (lambda v: solvers.ddim(EDM(), [3.0, 1.0, 0.0], prediction="x0", level=v), 3.0),
        (lambda v: grids.starting_at(EDM(), [3.0, 1.0, 0.0], v).tolist(), 3.0),
    ],
    ids=["eta", "strength", "level", "starting_at"],
)
def test_numbers_of_solvers_and_starts(make, edge):
    plans = [make(edge * f) for f in (1.0, 1 + ULP, 1 + 3e-7)]
    if hasattr(plans[0], "note"):
        assert all(np.array_equal(plan.M, plans[0].M) for plan in plans)
    else:
        assert plans[0] == plans[1] == plans[2]
    with pytest.raises(ValueError, match="accepted"):
        make(edge * (1 + TOO_FAR))


@pytest.mark.parametrize("low", [-1.0, 0.0, 1.5, -math.inf])
@pytest.mark.parametrize("high", [2.0, 999.0, math.inf])
def test_edged(low, high):
    """What is inside stays bit for bit, what is just outside becomes the edge, the rest stays."""
    rng = np.random.default_rng(0)
    inside = rng.uniform(max(low, -5), min(high, 50), 100)
    assert np.array_equal(edged(inside, low, high), inside)
    for edge, way in ((low, -1), (high, 1)):
        if math.isfinite(edge):
            size = abs(edge) or 1.0
            near = edge + way * size * ULP * np.arange(5)
            assert (edged(near, low, high) == edge).all()
            far = edge + way * size * TOO_FAR
            assert edged(np.array([far]), low, high)[0] == far and within(far, low, high) is None
            assert within(near[2], low, high) == edge
    assert np.isnan(edged(np.array([np.nan]), low, high)).all()
