"""What a search asks of a device: where it waits, how often it copies, and how many launches a
layer takes; and that it finds there what it finds on the CPU.
"""

import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from c import build as builds
from emulate import build

import fastsample as fs
from fastsample.kernels import argmin_source
from fastsample.models.analytic import GaussianMixture
from fastsample.optimize import ays, fit, oss

ROOT = Path(__file__).resolve().parents[1]
B, D, N = 4, 48, 16
# operators of ours that are two launches: cost_tiles and cost_sum; the zeros of moments, and it
TWICE = ("cost_matrix", "moments")
SCHEDULE = fs.schedules.EDM(sigma_max=20.0)


@pytest.fixture(scope="module")
def counted():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield import_module("counted")


@pytest.fixture(autouse=True)
def memory_as_it_comes(unwritten_memory_is_nan, monkeypatch):
    """Filling what nobody wrote would be counted."""
    monkeypatch.undo()


@pytest.fixture
def counting(counted, monkeypatch):
    class Device(counted.Device):
        def _count(self, name, *given):
            super()._count(name, *given)
            self.add(launches=int(name in TWICE))

    monkeypatch.setattr(counted, "Device", Device)
    return counted.counting


def answer(x, t, shift=0.0, name=()):
    assert not name or name.count("a") + name.count("b") == len(x)
    return torch.tanh(x) * 0.7 + shift


def searched(counting, budget, search=oss, **words):
    """A search on the device and the same on the CPU; what the first did, whole and between one
    evaluation and the next, the model's own doing left out.
    """
    z = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
    make = lambda fn: fs.Model(fn, schedule=SCHEDULE, prediction="x0", input_scale="vp")
    put = lambda words, to: {
        k: to(v) if isinstance(v, torch.Tensor) else v for k, v in words.items()
    }
    branches = [k for k in ("cond", "uncond") if k in words]
    brought = lambda to: words | {k: put(words[k], to) for k in branches}
    want = search(make(answer), z, budget, teacher=N, **brought(lambda v: v))
    with counting() as device:
        marks = [device.counts]

        def fn(x, t, **cond):
            marks.append(device.counts)
            out = answer(x, t, **cond)
            marks.append(device.counts)
            return out

        found = search(make(fn), device.put(z), budget, teacher=N, **brought(device.put))
        marks.append(device.counts)
    parts = [b - a for a, b in pairwise(marks)][::2]
    return SimpleNamespace(found=found, want=want, parts=parts, whole=sum(parts[1:], parts[0]))


def assert_same(found, want):
    assert found.error == want.error and found.nfe == want.nfe
    assert found.agreement == want.agreement
    for m, plan in want.plans.items():
        assert (found.indices[m] == want.indices[m]).all()
        assert (found.plans[m].M == plan.M).all() and (found.plans[m].t == plan.t).all()


# Waits: for z, which the note names; for the end points of the teacher and of its double; for the
# paths, and for the errors. Two uploads of each of these two plans' tables.
WAITS = 5 + 4
WORDS = {
    "plain": ({"amplitude": False}, WAITS),
    "amplitude": ({}, WAITS + 1),  # the slopes, of which the next scale is made
    "median, p = 1": ({"aggregate": "median", "p": 1.0}, WAITS),
    "bfloat16": ({"amplitude": False, "state_dtype": torch.bfloat16}, WAITS),
    "float64": ({"amplitude": False, "state_dtype": torch.float64}, WAITS),
    "fixed": ({"start": "fixed", "all_budgets": False}, WAITS),
    "guided": (
        {
            "cond": {"shift": torch.linspace(-0.5, 0.5, B)[:, None], "name": ["a"] * B},
            "uncond": {"shift": torch.zeros(B, 1), "name": ["b"] * B},
            "guidance": 1.5,
        },
        WAITS + 1,
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_search_waits_where_a_number_decides_and_nowhere_else(counting, name):
    """However many layers and budgets there are, and however many calls a layer takes."""
    words, waits = WORDS[name]
    for budget, batch in ((3, 256), (8, 16)):
        counts = searched(counting, budget, batch_size=batch, **words)
        assert_same(counts.found, counts.want)
        assert counts.found.agreement >= 60  # of two plans, no third was made
        assert counts.whole.syncs == waits


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc"])
def test_a_multistep_search_waits_once_a_layer_more(counting, solver):
    """For where its paths went: what they go on with depends on it."""
    for words in ({"amplitude": False}, {}):
        waits = []
        for budget in (3, 6):
            counts = searched(counting, budget, solver=solver, **words)
            assert_same(counts.found, counts.want)
            waits.append(counts.whole.syncs)
        assert waits[1] - waits[0] == 3


@pytest.mark.parametrize("search", [oss, fit])
def test_states_of_a_model_on_a_device_may_lie_on_the_host(counting, search):
    """What is asked together is carried over; all else is computed on the host."""
    counts = searched(counting, 3, search, state_device="cpu", all_budgets=False, batch_size=24)
    assert_same(counts.found, counts.want)
    whole = searched(counting, 3, search, all_budgets=False, batch_size=24)
    here, there = (max(part.bytes for part in one.parts[1:-1]) for one in (counts, whole))
    assert here < there


# Of states that are 16 bits wide one more, which widens them.
LAUNCHES = {torch.float32: 26, torch.bfloat16: 27}


@pytest.mark.parametrize("state_dtype", LAUNCHES)
def test_a_layer_is_so_many_launches(counting, counted, state_dtype):
    """With every budget of N steps, from one layer's call of the model to the next one's; the
    first layer joins the teacher's answer to its own.
    """
    counts = searched(counting, N, amplitude=False, state_dtype=state_dtype)
    layers = counts.parts[-N + 1 : -1]
    asked = {(c.launches, c.syncs, c.host_copies) for c in layers}
    assert asked == {(LAUNCHES[state_dtype], 0, 1)}
    assert counts.whole.host_copies == WAITS + 3 + 2 + N  # seeds, the grid's numbers, layers


def test_the_argmin_is_a_trifle_beside_the_costs(counting):
    """What its docstring says: launches, and bytes of the costs' mean alone."""
    I, J = 12, 9  # noqa: E741
    C = torch.rand(B, I, J, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with counting() as device:
        there = device.put(C)
        before = device.counts
        best = argmin_source(there.mean(0))
        counts = device.counts - before
        assert torch.equal(device.see(best), argmin_source(C.mean(0)))
    assert (counts.launches, counts.syncs, counts.host_copies) == (8, 0, 0)
    assert counts.bytes < 8 * I * J * (B + 8)


WRONG = {  # what a model answers once it is asked for the states of a layer, not for a teacher's
    "not finite": (lambda x: x * torch.nan, "the model's output at its time .* is not finite"),
    "too large": (lambda x: x * 0 + 3e38, "after 2 evaluations every jump to some node overflows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_device_was_not_waited_for_is_refused_in_the_words_of_the_cpu(counting, name):
    """The first thing that went wrong, whatever came of it in later layers."""
    wrong, sentence = WRONG[name]
    z = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
    fn = lambda x, t: wrong(x) if len(x) > B else answer(x, t)
    model = fs.Model(fn, schedule=SCHEDULE, prediction="x0", input_scale="vp")
    with pytest.raises(ValueError, match=sentence) as here:
        oss(model, z, 5, teacher=N)
    with counting() as device, pytest.raises(ValueError) as there:
        oss(model, device.put(z), 5, teacher=N)
    assert str(there.value) == str(here.value)


REACHED = """
import ctypes, sys
from emulate import package
package.load(sys.argv[1])
import torch
from emulate.build import asked
from fastsample.kernels import cost_gather, cost_matrix, moments
U, c, X = [torch.ones(4, 12, 48)] * 2, torch.ones(2, 12, 9), torch.ones(4, 9, 48)
runtime, marks = ctypes.CDLL(sys.argv[1]), []
for work in (
    lambda: None,
    lambda: cost_matrix(U, c, X),
    lambda: cost_gather(U, c, torch.zeros(9, dtype=torch.int32)),
    lambda: moments([X[:, 0]]),
):
    work()
    marks.append(asked(runtime))
print([[int(y - x) for x, y in zip(*pair)] for pair in zip(marks, marks[1:])])
"""


@pytest.mark.slow
def test_our_operators_reach_the_runtime_as_is_counted():
    """Launches, copies, waits, allocations; the zeros of moments are torch's."""
    (binary,) = build.tree().glob("_C*.so")
    path = f"{builds.ROOT}:{builds.ROOT / 'tests'}"
    environment = builds.environment(PYTHONPATH=path, OMP_NUM_THREADS="1")
    said = builds.run(sys.executable, "-c", REACHED, binary, env=environment)
    assert said.strip() == "[[2, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]"


# -- what lies elsewhere ---------------------------------------------------------------------------
def watched(fn, **words):
    asked = []
    model = fs.Model(fn, schedule=SCHEDULE, prediction="x0", **words)
    object.__setattr__(model, "fn", lambda x, t, **cond: (asked.append(1), fn(x, t, **cond))[1])
    return model, asked


class Net(torch.nn.Module):
    def __init__(self, device=None):
        super().__init__()
        self.layer = torch.nn.Linear(D, D, device=device)

    def forward(self, x, t, **cond):
        return self.layer(x)


def test_a_model_and_words_on_another_device_are_refused(counting):
    z, label = torch.randn(B, D, generator=torch.Generator().manual_seed(0)), torch.arange(B)
    there = torch.empty(B, device="meta")
    model, asked = watched(Net("meta"))
    with pytest.raises(ValueError, match="oss: the model's parameters are on meta and z is on cpu"):
        oss(model, z, 2)
    for words, sentence in (
        ({"cond": {"a": [label, {"b": there}]}}, r'oss: cond\["a"\]\[1\]\["b"\] is on meta'),
        ({"cond": {}, "uncond": {"a": there}, "guidance": 2.0}, r'oss: uncond\["a"\] is on meta'),
    ):
        model, asked = watched(Net())
        with pytest.raises(ValueError, match=f"{sentence} and z is on cpu; one device, or fs.sh"):
            oss(model, z, 2, **words)
        assert not asked
    with counting() as device:
        model, asked = watched(Net())
        with pytest.raises(ValueError, match="parameters are on cpu and z is on meta; one device"):
            oss(model, device.put(z), 2)
        model, asked = watched(answer)
        with pytest.raises(ValueError, match=r'cond\["label"\] is on cpu and z is on meta'):
            oss(model, device.put(z), 2, cond={"label": label})
        assert not asked


@pytest.mark.filterwarnings("ignore:oss. the teacher")
def test_what_may_lie_elsewhere():
    """A number that is told as it is, a shared value, an offloaded module, part of a module."""
    z = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
    law = GaussianMixture(torch.zeros(1, D).numpy(), [1.0], 0.5).model(SCHEDULE, "x0")
    there = torch.empty(B, device="meta")

    class Elsewhere(Net):
        def forward(self, x, t, **cond):
            return law(x, t)

    offloaded, half = Elsewhere("meta"), Elsewhere("meta")
    offloaded.layer._hf_hook = object()
    half.other = torch.nn.Linear(1, 1)
    cond = {"scale": torch.tensor(1.0, device="meta"), "table": fs.shared(there)}
    for module in (offloaded, half):
        model = fs.Model(module, schedule=SCHEDULE, prediction="x0", model_id="net")
        assert oss(model, z, 2, teacher=4, cond=cond).samples == B


@pytest.mark.parametrize("rows", ["free", "dpmpp_2m"])
def test_fit_waits_once_a_layer(counting, rows):
    waits = []
    for budget in (3, 4, 6):
        made = searched(counting, budget, fit, rows=rows, beam=2)
        assert made.found.nfe == made.want.nfe
        assert_same(made.found, made.want)
        waits.append(made.whole.syncs)
    assert waits[1] - waits[0] == 1 and waits[2] - waits[1] == 2


def test_ays_waits_once_a_block_of_samples(counting, monkeypatch):
    """And for the costs; whatever the budget."""
    waits = []
    for budget, block in ((2, 16), (4, 16), (2, 1)):
        monkeypatch.setattr("fastsample.optimize._klub.BLOCK", block)
        made = searched(counting, budget, ays, steps=5)
        assert made.found.nfe == made.want.nfe
        assert_same(made.found, made.want)
        waits.append(made.whole.syncs)
    assert waits[0] == waits[1] == waits[2] - (B - 1)
