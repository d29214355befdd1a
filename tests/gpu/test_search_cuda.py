"""On a GPU: a search takes in every layer the sources that float64 takes for the same states, finds
the CPU's plans to the bit for a model of operations that are rounded alike, and waits as often
however many budgets it answers.
"""

import sys
import warnings
from pathlib import Path

import pytest
import torch

import fastsample as fs
from fastsample.kernels.backend import BACKENDS
from fastsample.runtime.capturable import KIND

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "kernels"), str(Path(__file__).parent)]

from test_kit_cuda import covered  # noqa: E402
from test_search import ASKED, BF16, FLOW, alike, searched, taught, wrong_sources  # noqa: E402

pytestmark = pytest.mark.gpu
HERE = [name for name in BACKENDS if covered("cost_matrix", name)]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("case", range(len(ASKED)))
def test_every_layer_takes_the_sources_of_float64(monkeypatch, backend, case):
    _, layers = searched(monkeypatch, backend, ASKED[case], KIND)
    assert wrong_sources(layers, ASKED[case][-1]) == 0


def rational(device):
    """A model of sums, products and quotients, of which each is rounded to nearest everywhere."""
    model = fs.Model(lambda x, t, shift: x / (x * x + 1.5) + shift, schedule=FLOW, prediction="x0")
    z = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2)).to(device)
    shift = torch.linspace(-0.5, 0.5, 4).view(4, 1, 1, 1).to(device)
    return model, z, {"cond": {"shift": shift}, "teacher": taught(model, 12)}


WORDS = [
    {"budget": 6},
    {"budget": 6, "p": 1.0, "start": "fixed", "state_dtype": torch.float64},
    {"budget": 4, "aggregate": "median"},
    {"budget": 4, "all_budgets": False, **BF16},
]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("words", WORDS, ids=range(len(WORDS)))
def test_the_plans_are_those_of_the_cpu(monkeypatch, backend, words):
    found, _ = searched(monkeypatch, backend, ("oss", rational, words), KIND)
    want, _ = searched(monkeypatch, "reference", ("oss", rational, words))
    assert alike(found, want)
    # its mean is summed in another order
    assert found.error == pytest.approx(want.error, rel=1e-12)


@pytest.mark.skipif(KIND == "cpu", reason="rehearsed on the host, which waits for nothing")
def test_it_waits_as_often_for_many_budgets_as_for_few():
    model, z, told = rational(KIND)
    seen = []
    for budget in (2, 2, 9):  # the first loads what is loaded once
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                fs.optimize.oss(model, z, budget, **told)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen.append(len([w for w in said if "synchronizing" in str(w.message)]))
    assert seen[1] == seen[2] > 0
