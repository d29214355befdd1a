"""OSS refuses bad input with one sentence, before the model is asked; what a model does wrong is
named; an interrupt passes through.
"""

import pytest
import torch
from test_oss import problem

import fastsample as fs
from fastsample.optimize import oss

BAD = [
    ({"budget": 8}, "budget=8 on a teacher grid of 7 steps"),
    ({"budget": 0}, "budget=0"),
    ({"budget": 2.5}, "budget=2.5"),
    ({"budget": True}, "budget=True"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"solver": "heun"}, "solver='heun'"),
    ({"solver": ["euler"]}, r"solver=\['euler'\]; .* is accepted"),
    ({"start": "late"}, "start='late'"),
    ({"aggregate": "mean"}, "aggregate='mean'"),
    ({"p": 0}, "p=0"),
    ({"p": float("nan")}, "p=nan"),
    ({"z": torch.zeros(3)}, r"z is float32 \[3\]"),
    ({"z": torch.zeros(0, 5)}, r"z is float32 \[0, 5\]"),
    ({"z": torch.ones(2, 5).long()}, "z is int64"),
    ({"z": torch.full((2, 5), float("nan"))}, "not finite"),
    ({"z": (4,)}, r"z=\[4\]"),
    ({"guidance": 2.0}, "one of guidance and uncond is given"),
    ({"uncond": {}}, "one of guidance and uncond is given"),
    ({"teacher": 0}, "0"),
    ({"teacher": [1.0, 2.0]}, "rise from 1 to 2; the same list from noise to data"),
    ({"teacher": [1.0]}, "1 times"),
    ({"cond": [1]}, "cond is a list"),
    ({"model": "net"}, "the model is a str"),
    ({"teacher": 9.0}, "teacher=9.0; None, a whole"),
    ({"teacher": True}, "teacher=True; None"),
    ({"teacher": "karras"}, "teacher='karras'; None"),
    ({"z": (4, 5), "seed": "a"}, "seed is 'a'"),
    ({"z": (4, 5), "seed": 1.5}, "seed is 1.5"),
    ({"z": (4, 5), "seed": 2**64}, "seed spans"),
    ({"z": (4, 5), "budget": 8}, "budget=8"),
    ({"z": (4, 5), "guidance": 2.0}, "one of"),
    ({"state_dtype": torch.float16}, "state_dtype=torch.float16; torch.float32, float64 or bfloat"),
    ({"state_dtype": "float32"}, "state_dtype='float32'; torch.float32"),
]


@pytest.mark.parametrize("change, sentence", BAD, ids=[str(k) for k in range(len(BAD))])
def test_bad_input(change, sentence):
    model, z, grid = problem()
    asked, state = [], torch.random.get_rng_state()
    fn = lambda x, t: (asked.append(1), model.fn(x, t))[1]
    watched = fs.Model(fn, schedule=model.schedule, prediction="x0")
    arguments = {"model": watched, "z": z, "budget": 3, "teacher": grid} | change
    with pytest.raises((ValueError, TypeError), match=sentence) as caught:
        oss(**arguments)
    assert "\n" not in str(caught.value) and not asked
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bad_teachers_and_models():
    model, z, grid = problem()
    with pytest.raises(ValueError, match="draws noise"):
        oss(model, z, 2, teacher=fs.solvers.euler_ancestral(model, grid))
    short = fs.Model(lambda x, t: x[:1], schedule=model.schedule, prediction="x0")
    with pytest.raises(ValueError, match="returned"):
        oss(short, z, 2, teacher=grid)
    calls = []

    def late_nan(x, t):
        calls.append(1)
        return model.fn(x, t) * (float("nan") if len(calls) > 8 else 1.0)

    with pytest.raises(ValueError, match="not finite"):
        oss(fs.Model(late_nan, schedule=model.schedule, prediction="x0"), z, 2, teacher=grid)


def test_an_interrupt_passes_through():
    model, z, grid = problem()

    def interrupted(x, t):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oss(fs.Model(interrupted, schedule=model.schedule, prediction="x0"), z, 2, teacher=grid)
