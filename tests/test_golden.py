"""Golden plan files: what was written once is read for ever, number by number, and means the same
run.

tests/golden/<name>.fsplan is a file as it was saved; <name>.json beside it is the record: every
array as hexadecimal floats or integers, the note, and the end of a run by the NumPy interpreter.
Neither is ever regenerated: a reader that no longer reads them is broken, and a new format gets a
new version number and new files. They were written by this snippet, run in tests/ (`record` is
below)::

    from fastsample import grids, guidance
    from fastsample.plan import Plan
    from fastsample.schedules import EDM, DiscreteVP, Flow
    from fastsample.solvers import ddim, heun, unipc
    flow, vp, edm = Flow(3.0), DiscreteVP.scaled_linear(), EDM()
    plans = {
        "unipc_flow_guided": guidance.guided(unipc(flow, grids.uniform(flow, 5), prediction="flow"),
        branches=3), "unipc_inpaint": unipc(vp, grids.trailing(vp, 4), prediction="v", start=1,
        inpaint=True),
        "heun_churn": heun(edm, grids.karras(edm, 4), prediction="edm", s_churn=3.0),
        "ddim_clip_wide": ddim(vp, grids.leading(vp, 3), prediction="eps", eta=0.7,
        clip=1.0).padded(S=2, G=2, L=3, K=1, E=2),
    }
    for name, plan in plans.items():
        plan.save(f"golden/{name}.fsplan")
        Path(f"golden/{name}.json").write_text(json.dumps(record(plan), indent=1))
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
from pathlib import Path

import interpreter
import numpy as np
import pytest

import fastsample as fs
from fastsample.plan import Plan

FILES = Path(__file__).parent / "golden"
DIGESTS = {
    "unipc_flow_guided": ["9ed15503fe880302794597ed5a1b3468", "519ce844e364fe1b50e45af611872f9f"],
    "unipc_inpaint": ["5d774408933cd5d076edcc1d73e886d0", "7f9ba8016e45ef61fb0f069bddb79cbe"],
    "heun_churn": ["cc18c60d74bf2e6451f1f3db73934fcd", "b13335e428a8c307f90abaecf2c708c4"],
    "ddim_clip_wide": ["9a90cb96121e83b9ebd5b4c7bec17e6e", "5db5d7d3959e0e4f124a64622f1bb441"],
}
FLOATS = ("M", "p", "q", "clip", "U", "V", "known", "c", "t", "preview", "alpha", "sigma")
INTS = ("reads", "branches", "known_reads", "dst", "call", "ids")


def end_of_run(plan: Plan) -> np.ndarray:
    """The last state of a run made of sums and products alone, so of the same bits everywhere."""
    number = np.arange(6.0)

    def model(x, t, row, call):
        return [x / 2 ** (1 + g) - 0.25 * g + number / 8 for g in range(plan.G)]

    def noise(k):
        return (number * (k + 3) % 7 - 3) / 2

    start = (number - 2) / 2
    inpaint = {"mask": (number % 3) / 2, "known": number / 4 - 1} if plan.known_reads.any() else {}
    return interpreter.run(plan, start, model, noise, scale=[3.5] * plan.K, **inpaint)


def record(plan: Plan) -> dict:
    """Everything a plan holds, as JSON: floats in hexadecimal."""
    arrays = {name: getattr(plan, name) for name in (*FLOATS, *INTS)}
    values = {
        name: [float(v).hex() for v in a.ravel()] if name in FLOATS else a.ravel().tolist()
        for name, a in arrays.items()
    }
    facts = {
        "note": plan.note,
        "entries": list(plan.entries),
        "nfe": plan.nfe,
        "end": [float(v).hex() for v in end_of_run(plan)],
    }
    return {
        name: {"shape": list(a.shape), "values": values[name]} for name, a in arrays.items()
    } | facts


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_file_and_record_are_the_ones_written_once(name):
    digests = [
        hashlib.sha256((FILES / f"{name}.{kind}").read_bytes()).hexdigest()[:32]
        for kind in ("fsplan", "json")
    ]
    assert digests == DIGESTS[name], "a golden file was changed; put it back"


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_file_is_read_as_recorded(name):
    plan = Plan.load(FILES / f"{name}.fsplan")
    want = json.loads((FILES / f"{name}.json").read_text())
    have = record(plan)
    assert have.keys() == want.keys()
    for key in want:
        assert have[key] == want[key], key
    assert plan.to_bytes() == (FILES / f"{name}.fsplan").read_bytes()
    assert record(Plan.from_json(plan.to_json())) == want


@pytest.mark.skipif(
    importlib.util.find_spec("fastsample._C") is None,
    reason="the native module is not built: make native",
)
@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_c_parser_reads_the_same_facts(name):
    from fastsample import _C

    facts = _C.parse_plan((FILES / f"{name}.fsplan").read_bytes())
    plan = Plan.load(FILES / f"{name}.fsplan")
    want = {**plan.dims, "W": plan.W, "nfe": plan.nfe, "entries": list(plan.entries)}
    assert {key: facts[key] if key != "entries" else list(facts[key]) for key in want} == want
    assert json.loads(facts["note"]) == plan.note


def test_golden_files_use_every_part_of_the_format():
    """Slots, branches, noises, scales, model scalars, a clip, a known image, two writes in a row:
    each is in some golden file.
    """
    plans = [Plan.load(FILES / f"{name}.fsplan") for name in DIGESTS]
    for part in ("S", "L", "K"):
        assert max(getattr(plan, part) for plan in plans) > 0, part
    assert max(plan.G for plan in plans) > 2 and max(plan.E for plan in plans) > 1
    assert any((plan.clip > 0).any() for plan in plans) and any(
        plan.known_reads.any() for plan in plans
    )
    assert any((plan.dst[:, 1] >= 0).any() for plan in plans)


@pytest.mark.parametrize("name", ["plan", "scheduler", "from_plan"])
def test_pickles_made_before_files_moved_still_load(name):
    """golden/pickles: a dpmpp_2m plan of three steps, a UniPC FsScheduler, and one of that plan in
    mid-run, as version 0.1.0 pickled them when plan.py and interop/diffusers.py were files.
    """
    pytest.importorskip("diffusers")
    value = pickle.loads((FILES / "pickles" / f"{name}.pickle").read_bytes())
    if name == "plan":
        schedule = fs.schedules.EDM()
        again = fs.solvers.dpmpp_2m(schedule, fs.grids.karras(schedule, 3), prediction="edm")
        assert type(value) is Plan
        assert value.to_bytes() == again.to_bytes()
    else:
        assert type(value) is fs.FsScheduler
        value.set_timesteps(3)
        assert len(value.timesteps) == 3
    assert type(value).__module__ in ("fastsample.plan", "fastsample")
