"""The arguments that every search takes: weights of elements, the model's dtype, where states lie
and how much they may take.
"""

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import metrics
from fastsample.kernels import normal
from fastsample.models import analytic
from fastsample.optimize import fit, oss
from fastsample.trajectories import record

SEARCHES = {
    "oss": (oss, {}),
    "oss, p = 1": (oss, {"p": 1.0}),
    "oss, median": (oss, {"aggregate": "median"}),
    "fit": (fit, {"beam": 2}),
    "fit, log": (fit, {"beam": 1, "aggregate": "log"}),
    "fit, consistent": (fit, {"beam": 1, "rows": "consistent"}),
}
every_search = pytest.mark.parametrize("name", SEARCHES)
LAW = analytic.GaussianMixture(
    np.random.default_rng(0).standard_normal((3, 4)), np.ones(3) / 3, 0.3
)
MODEL = LAW.model(fs.schedules.EDM(), "x0")


def noise(B, D=4, seed=0):
    seeds = torch.arange(B) + seed
    return normal(seeds, torch.zeros_like(seeds), D).double()


def searched(name, model, z, budget=3, **given):
    search, own = SEARCHES[name]
    return search(model, z, budget, teacher=9, **own, **given)


def alike(one, other):
    """Two searches found the same: the same times, numbers equal but for the order of sums."""
    for m in one.plans:
        assert np.array_equal(one.indices[m], other.indices[m])
        assert one.error[m] == pytest.approx(other.error[m], rel=1e-9)
        for a, b in zip(one.plans[m].table(), other.plans[m].table(), strict=True):
            assert np.allclose(a, b, rtol=1e-6, atol=1e-9)
    assert one.agreement == pytest.approx(other.agreement, rel=1e-9)


@pytest.mark.filterwarnings("ignore:.*the teacher")
@every_search
def test_padding_does_not_count(name):
    """Whatever the model says of elements of weight 0, the search is that of the others."""

    def padded(x, t):
        rest = 30 * torch.sin(50 * x[:, 4:]) * t[:, None].sqrt()
        return torch.cat([MODEL(x[:, :4], t), rest], 1)

    z, more = noise(5), noise(5, 7, seed=9)
    more[:, :4] = z
    mask = torch.arange(7) < 4
    one, wide = searched(name, MODEL, z), fs.Model(padded, MODEL.schedule, "x0")
    alike(one, searched(name, wide, more, weight=mask))
    assert searched(name, wide, more).error[3] > 2 * one.error[3]
    if name != "oss":
        return
    unseen, words = noise(2, 7, seed=70), {"budget": 1, "all_budgets": False}
    unseen[:, :4] = noise(2, seed=50)
    beside = searched(name, MODEL, z, held_out=unseen[:, :4], **words).compared[1]
    there = searched(name, wide, more, weight=mask, held_out=unseen, **words).compared[1]
    assert there.found == pytest.approx(beside.found, rel=1e-9)
    assert there.by_hand == pytest.approx(beside.by_hand, rel=1e-9)


@pytest.mark.filterwarnings("ignore:.*the teacher")
@every_search
def test_a_weight_of_two_is_the_element_twice(name):
    twice = fs.Model(
        lambda x, t: torch.cat([y := MODEL(x[:, :4], t), y[:, :1]], 1), MODEL.schedule, "x0"
    )
    z = noise(5)
    one = searched(name, MODEL, z, weight=torch.tensor([2, 1, 1, 1]))
    other = searched(name, twice, torch.cat([z, z[:, :1]], 1))
    alike(one, other)
    assert one.plan.note["found"]["weight"] is not None
    assert other.plan.note["found"]["weight"] is None


def test_weights_of_metrics_are_scaled_in_every_sample():
    draw = np.random.default_rng(3)
    a, b = draw.standard_normal((2, 4, 3, 5))
    w = draw.random((4, 3, 1))
    each = [((a[i] - b[i]) ** 2 * w[i]).sum() / (w[i].sum() * 5) for i in range(4)]
    assert metrics.mse(a, b, w) == pytest.approx(np.mean(each), rel=1e-12)
    db = 10 * np.log10(4 / np.array(each))
    assert metrics.psnr_each(a, b, weight=w) == pytest.approx(db, rel=1e-12)
    assert metrics.psnr_quartiles(a, b, weight=7 * w)[1] == pytest.approx(
        10 * np.log10(4 / np.median(each)), rel=1e-12
    )
    assert metrics.mse(a, b, np.ones(5)[None]) == pytest.approx(metrics.mse(a, b), rel=1e-12)


@pytest.mark.parametrize(
    "weight, sentence",
    [
        (torch.ones(3), r"oss: weight \[3\] for samples \[5, 4\]; \[5, 4\], or 1 in place of any"),
        (-torch.ones(4), "oss: weight holds a number below 0"),
        (torch.full((4,), float("nan")), "oss: weight holds a number below 0 or not finite"),
        (torch.eye(5, 4), "oss: every weight of sample 4 is 0; one above 0 in every sample"),
    ],
)
def test_weights_that_say_nothing_are_refused(weight, sentence):
    with pytest.raises(ValueError, match=sentence):
        oss(fs.Model(None, MODEL.schedule, "x0"), noise(5), 2, weight=weight)


@pytest.mark.filterwarnings("ignore:.*the teacher")
@every_search
def test_a_network_is_asked_in_its_own_dtype(name):
    """States and targets stay in float32 where the network works in bfloat16."""
    asked = set()

    def network(x, t, gain):
        asked.add((x.dtype, gain.dtype))
        return (torch.tanh(x) * gain).to(torch.bfloat16)

    model = fs.Model(network, fs.schedules.EDM(), "x0", input_scale="vp")
    z, gain = noise(4).float(), torch.linspace(0.8, 1.2, 4, dtype=torch.bfloat16)[:, None]
    words = {"cond": {"gain": gain}, "model_dtype": torch.bfloat16}
    search = searched(name, model, z, **words)
    assert asked == {(torch.bfloat16, torch.bfloat16)}
    run = record(search.teacher, model, z, **words)
    assert run.x.dtype == torch.float32 and run.x0.dtype == torch.float32
    for m, plan in search.plans.items():
        end = metrics.run(plan, model, z, **words)
        assert end.dtype == torch.float32
        if SEARCHES[name][1] == {}:
            assert metrics.mse(end, run.end) == pytest.approx(search.error[m], rel=1e-3)


@every_search
def test_states_on_the_host_are_the_same_states(name):
    z = noise(5)
    one, other = searched(name, MODEL, z), searched(name, MODEL, z, state_device="cpu")
    assert one.plan == other.plan and one.error == other.error


@pytest.mark.parametrize("name", ["oss", "fit"])
def test_states_of_16_bits_take_half_and_find_nearly_the_same(name):
    z = noise(8).float()
    one = searched(name, MODEL, z, 4)
    other = searched(name, MODEL, z, 4, state_dtype=torch.bfloat16)
    assert 2 * other.bytes == one.bytes
    fresh = noise(64, seed=90).float()
    target = metrics.run(one.teacher, MODEL, fresh)
    full, half = (metrics.reached(s.plan, MODEL, fresh, target) for s in (one, other))
    assert half > full - 3.0


@every_search
def test_memory_is_bounded_before_the_model_is_asked(name):
    z, mute = noise(5), fs.Model(None, MODEL.schedule, "x0")
    taken = searched(name, MODEL, z).bytes
    assert searched(name, MODEL, z, max_bytes=taken).bytes == taken
    why = f"states of 5 samples take {taken:,} bytes and max_bytes is {taken - 1:,}; at most 4 "
    with pytest.raises(ValueError, match=why):
        searched(name, mute, z, max_bytes=taken - 1)
    with pytest.raises(ValueError, match="a smaller budget or beam"):
        searched(name, mute, z, max_bytes=8)


@pytest.mark.parametrize("search", [oss, fit])
def test_a_name_that_no_search_knows_is_refused(search):
    where = search.__name__
    with pytest.raises(
        TypeError, match=f"{where}: there is no argument 'guidence'; its own and te"
    ):
        search(MODEL, noise(2), 2, guidence=3.0)
    with pytest.raises(
        ValueError, match=f"{where}: model_dtype=torch.int8; torch.float32, float16"
    ):
        search(MODEL, noise(2), 2, model_dtype=torch.int8)
