"""A search's checkpoint: whose it is, and what its refusals say; the limit that a search names."""

import re

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.models import analytic
from fastsample.optimize import _climb
from fastsample.optimize import search as climb
from fastsample.optimize._checkpoint import Checkpoint
from fastsample.optimize._fingerprint import SUMS, fingerprint, sketches

LAW = analytic.GaussianMixture(
    np.random.default_rng(0).standard_normal((3, 4)), np.ones(3) / 3, 0.3
)
BASE = LAW.model(fs.schedules.EDM(), "x0")
WORDS = {"seed": 5, "teacher": 6, "beam": 1, "by_hand": False}


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def searched(cond, folder, **words):
    listens = lambda x, t, prompt, **_: BASE(x, t) + 0.01 * prompt.mean((1, 2))[:, None]
    model = fs.Model(listens, BASE.schedule, "x0", model_id="mixture")
    return climb(model, [4, 4], 1, cond=cond, checkpoint=folder, **WORDS, **words)


def test_conditions_of_another_machine_are_the_same_and_other_words_are_not(tmp_path):
    """A text encoder that runs anew answers within rounding, as a model may; another prompt, other
    labels and other shapes are another search, whichever sample they are of.
    """
    prompt, guidance = drawn(4, 7, 5), torch.full((4,), 3.5)
    rotary = fs.shared({"cos": drawn(7, 8, seed=1)})
    label = torch.tensor([1000.0, 2.0, 3.0, 4.0])
    cond = {"prompt": prompt, "guidance": guidance, "rotary": rotary, "label": label}
    first = searched(cond, tmp_path)
    near = {"prompt": prompt * (1 + 2**-8 * drawn(4, 7, 5, seed=2))}  # as bfloat16 rounds
    near |= {"guidance": guidance * (1 + 1e-5), "rotary": fs.shared({"cos": rotary.value["cos"]})}
    again = searched(cond | near, tmp_path)
    assert again.plans[1].to_json() == first.plans[1].to_json()
    one = prompt.clone()
    one[2] = drawn(7, 5, seed=3)
    for name, value, path in (
        ("prompt", one, "prompt"),
        ("prompt", prompt.flip(0), "prompt"),
        ("guidance", guidance + torch.tensor([0.0, 0.0, 0.0, 0.1]), "guidance"),
        ("rotary", fs.shared({"cos": drawn(7, 8, seed=4)}), "rotary"),
        ("rotary", fs.shared({"sin": rotary.value["cos"]}), None),
        ("label", label + torch.tensor([1.0, 0.0, 0.0, 0.0]), None),
        ("prompt", prompt[:, :6], None),
        ("prompt", prompt.double(), None),
    ):
        where = rf"\['cond'\]\['{path}'\]\S*" if path else ""
        with pytest.raises(ValueError, match=f"is of another search: conditions{where} is "):
            searched(cond | {name: value}, tmp_path)


@pytest.mark.parametrize("size", [3, SUMS, 1000])
def test_a_sketch_is_as_far_as_what_it_is_of(size):
    """64 of them: the mean of chi-square/SUMS over 64 is within 0.2 of 1, at 4 sigma."""
    v, w = drawn(64, size), drawn(64, size, seed=1)
    (one,), (other,) = (sketches({"a": x}).values() for x in (v, w))
    moved = (np.array(one.rows) - np.array(other.rows))[:, 1:]
    ratio = (moved**2).sum(1) / (v - w).double().square().sum(1).numpy()
    assert abs(ratio.mean() - 1) < (1e-6 if size <= SUMS else 4 * np.sqrt(2 / SUMS / 64))
    assert np.allclose(np.array(one.rows)[:, 0], v.double().norm(dim=1))


def test_numbers_that_are_not_finite_are_known_by_their_places():
    v = drawn(2, 40)
    v[0, 3] = -torch.inf
    moved = v.clone()
    moved[0, [3, 4]] = v[0, [4, 3]]
    assert fingerprint({"a": v}) == fingerprint({"a": v * (1 + 1e-6)}) != fingerprint({"a": moved})
    assert np.isfinite(sketches({"a": v})["['a']"].rows).all()


def test_a_refusal_shows_what_differs(tmp_path):
    """Though it stands behind all that fits into a sentence."""
    words = {f"an option {k}": "of the model" for k in range(20)}
    Checkpoint("search", tmp_path, {"model": words | {"batch_size": 2}}).keep(
        "look", {"rows": 0, "seconds": 0.0}
    )
    with pytest.raises(ValueError) as refused:
        Checkpoint("search", tmp_path, {"model": words | {"batch_size": 8}})
    said = "is of another search: model is (.*) there and (.*) here; another folder"
    there, here = re.search(said, str(refused.value)).groups()
    assert there.endswith("'batch_size': 2}") and here.endswith("'batch_size': 8}")
    assert there.startswith("...") and len(there) <= 90
    cond = {"prompt": torch.ones(4, 2, 2)}
    searched(cond, tmp_path / "a", batch_size=2)
    with pytest.raises(ValueError, match="batch_size=2.* there and .*batch_size=8.* here"):
        searched(cond, tmp_path / "a", batch_size=8)
    with pytest.raises(ValueError, match="model is 'a' there and None here"):
        Checkpoint("search", tmp_path / "b", {"model": "a"}).keep("k", {"rows": 0, "seconds": 0.0})
        Checkpoint("search", tmp_path / "b", {"model": None})


@pytest.mark.parametrize("pace", [1.2345e-7, 0.0010041, 0.012345, 1.00001, 123.456])
def test_the_limit_named_is_enough(pace, monkeypatch):
    """On a clock that stands still: it is the least that is accepted, rounded up."""
    seen = _climb.probe
    monkeypatch.setattr(_climb, "probe", lambda *given: (pace, *seen(*given)[1:]))
    monkeypatch.setattr(_climb.Climb, "after", lambda self, rows: rows * self.pace)
    model = fs.Model(BASE, BASE.schedule, "x0", model_id="mixture")
    with pytest.raises(ValueError, match="a time_limit above") as refused:
        climb(model, [4, 4], 1, time_limit=pace, **WORDS)
    limit = re.search(r"a time_limit above ([0-9.]+) s,", str(refused.value))[1]
    needed = pace * int(re.search(r"needs (\d+) of them", str(refused.value))[1])
    assert needed <= float(limit) <= max(needed * 1.1, needed + (needed >= 10))
    assert climb(model, [4, 4], 1, time_limit=float(limit), **WORDS).plans
