"""Whole searches by every backend: the plans, to the bit, of the search by the definition, and in
every layer the sources that float64 takes for the same states.
"""

import numpy as np
import pytest
import torch
from cases import backends
from cost_bounds import exact
from torch.utils._pytree import tree_map_only

import fastsample as fs
from fastsample import optimize
from fastsample.kernels import argmin_source, cost_matrix
from fastsample.kernels import backend as choices
from fastsample.models.analytic import GaussianMixture
from fastsample.optimize import _layers

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")  # log 0
BACKENDS = [
    pytest.param(name, marks=[pytest.mark.interpreted] if name == "triton" else [])
    for name in backends("cost_matrix", wished=True)[1:]
]
B = 3
FLOW = fs.schedules.Flow(shift=3.0)


def taught(model, steps):
    """A teacher that its note does not make is not judged, which would take most of the time."""
    return fs.solvers.dpmpp_2m(model, fs.grids.uniform(FLOW, steps)).with_note(solver="mine")


def mixture(device):
    """A law whose mean each sample's condition moves: (model, noise, what else a search is told)"""
    draw = np.random.default_rng(0)
    law = GaussianMixture(draw.standard_normal((3, 20)), [0.2, 0.3, 0.5], 0.4).model(FLOW, "x0")
    fn = lambda x, t, shift: law.fn(x, t) + shift
    model = fs.Model(fn, schedule=FLOW, prediction="x0", time=law.time)
    z = torch.from_numpy(draw.standard_normal((B, 20))).float().to(device)
    shift = torch.linspace(-0.5, 0.5, B, device=device)[:, None]
    return model, z, {"cond": {"shift": shift}, "teacher": taught(model, 9)}


def guided(device):
    model, z, words = mixture(device)
    return model, z, words | {"uncond": {"shift": 0 * z[:, :1]}, "guidance": 1.5}


def garments(device):
    """The embedded model."""
    model = fs.models.fashion(FLOW, "flow", device=device)
    z = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(4)).to(device)
    label = torch.arange(2, device=device)
    return model, z, {"cond": {"label": label}, "teacher": taught(model, 6)}


BF16 = {"state_dtype": torch.bfloat16}
CASES = {  # of a search: its subject, and what it is told
    "oss": [
        (mixture, {"budget": 2}),
        (
            mixture,
            {"aggregate": "median", "p": 1.5, "start": "fixed", "state_dtype": torch.float64},
        ),
        (guided, {"p": 0.5, "start": "fixed", "all_budgets": False, **BF16}),
        (guided, {"aggregate": "median", "budget": 2, "p": 1.0, "solver": "ddim", **BF16}),
        (garments, {"amplitude": False}),
    ]
}
ASKED = [(name, *case) for name, cases in CASES.items() for case in cases]


# What these ask of the kernels is their teacher, whether answers are finite, and costs that are
# summed over all samples before one is chosen; the sums of fit are torch's.
OTHERS = [
    ("fit", mixture, {"beam": 2, "amplitudes": (1.0, 1.2)}),
    ("fit", guided, {"rows": "consistent", "all_budgets": False, **BF16}),
    ("fit", mixture, {"rows": "dpmpp_2m", "aggregate": "log", "state_dtype": torch.float64}),
    ("gits", guided, {"solver": "dpmpp_2m"}),
    ("gits", mixture, {"measure": "l1"}),
    ("ays", guided, {"steps": 12}),
]


def test_every_search_is_asked():
    """The climb of `search` is made of the others."""
    asked = {*CASES, *(name for name, *_ in OTHERS)}
    assert asked == set(optimize.__all__) - {"Search", "search"}


def searched(monkeypatch, backend, case, device="cpu"):
    """A search by a backend, and of each layer what its costs were made of and came to, here."""
    (name, subject, words), layers = case, []
    model, z, told = subject(device)

    def watched(*given):
        C = cost_matrix(*given)
        layers.append(tree_map_only(torch.Tensor, torch.Tensor.cpu, (*given, C)))
        return C

    with monkeypatch.context() as patch:
        patch.setenv(choices.VARIABLE, backend)
        patch.setattr(choices, "_chosen", {})
        patch.setattr(_layers, "cost_matrix", watched)
        found = getattr(optimize, name)(model, z, **{"budget": 3} | told | words)
        used = {key[0]: choice.name for key, choice in choices.chosen().items() if key[1] in device}
    assert used == dict.fromkeys(choices.KERNELS, backend)
    assert len(layers) == words.get("budget", 3)
    return found, layers


def wrong_sources(layers, words):
    """Sources that a layer took and float64 does not, for the same states."""
    count = 0
    for U, c, X, band, p, C in layers:
        assert X.dtype == words.get("state_dtype", torch.float32)
        wide = [u.double() for u in U], c, X.double(), band.clamp(max=X.shape[1]), p
        joint = "aggregate" not in words
        took, wanted = (argmin_source(v.mean(0) if joint else v) for v in (C, exact(*wide)))
        count += int((took != wanted).sum())
    return count


def alike(found, want):
    """Are indices the same, and the plans' numbers to the bit?"""
    pairs = [(found.plans[m], plan) for m, plan in want.plans.items()]
    tables = [(a.table(np.float64), b.table(np.float64)) for a, b in pairs]
    return all(
        a.tobytes() == b.tobytes() for both in tables for a, b in zip(*both, strict=True)
    ) and all(found.indices[m].tolist() == at.tolist() for m, at in want.indices.items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", range(len(ASKED)))
def test_a_search_is_that_of_the_definition(monkeypatch, backend, case):
    found, layers = searched(monkeypatch, backend, ASKED[case])
    want, _ = searched(monkeypatch, "reference", ASKED[case])
    assert wrong_sources(layers, ASKED[case][-1]) == 0
    assert alike(found, want) and found.error == want.error
    for m, plan in want.plans.items():
        notes = [dict(one.note["found"], seconds=0) for one in (found.plans[m], plan)]
        assert notes[0] == notes[1]


@pytest.mark.skipif("native" not in backends("cost_matrix"), reason="no native code")
@pytest.mark.parametrize("name, subject, words", OTHERS)
def test_other_searches_are_those_of_the_definition(monkeypatch, name, subject, words):
    model, z, told = subject("cpu")
    found = {}
    for backend in ("native", "reference"):
        monkeypatch.setenv(choices.VARIABLE, backend)
        monkeypatch.setattr(choices, "_chosen", {})
        found[backend] = getattr(optimize, name)(model, z, **{"budget": 3} | told | words)
        used = {choice.name for choice in choices.chosen().values()}
        assert used == {backend}
    one, other = (found[backend] for backend in ("native", "reference"))
    assert alike(one, other)
    # ays says the costs themselves, float32 differences summed in another order
    rel = 1e-6 if name == "ays" else 0.0
    assert all(one.error[m] == pytest.approx(e, rel=rel, abs=0) for m, e in other.error.items())
