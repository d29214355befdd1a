"""Every public argument that is a number takes one of Python, NumPy or torch, of any dtype and of
no dimension, for the same result; what is none is one sentence, and True counts nothing.
"""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
from tests.numbers_given import (  # noqa: E402 (imports diffusers)
    COUNTS,
    REALS,
    SEARCHED,
    SEARCHED_COUNTS,
    outcome,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*the teacher", "ignore:.*None instead"
)
WHOLE = [kind(3) for kind in (np.int32, np.int64, np.uint8, np.array)] + [
    torch.tensor(3, dtype=dtype)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
]
REAL = [3, *WHOLE, np.float64(3), np.float32(3), np.float16(3), np.array(3.0)] + [
    torch.tensor(3.0, dtype=dtype)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.half)
]
ONE = [torch.tensor([3.0]), torch.tensor([3]), np.array([3]), [3]]
TRUTHS = [True, np.True_, torch.tensor(True)]
LISTS = {"sigma(t)"}  # an argument that is a list of numbers too, in which True is 1
# that may be a tensor a run reads, with a sentence of its own for one that requires grad
READ = {"Sampler.guidance", "Sampler.noise_scale", "Run.noise_scale"}


def held(call, base, kinds, name):
    right = outcome(call(base))
    for value in kinds:
        assert outcome(call(value)) == right, repr(value)
    refused = 0
    for value in ONE + (TRUTHS if name not in LISTS else []):
        try:
            found = outcome(call(value))
        except (ValueError, TypeError) as error:
            said = str(error)
            assert "\n" not in said
            assert any(word in said for word in ("accepted", "needed", "pass at least that")), said
            refused += 1
        else:
            assert value not in TRUTHS or not isinstance(value, (bool, np.bool_)), repr(value)
            assert found == right or name in LISTS, repr(value)
    assert refused >= len(TRUTHS) or name in LISTS


@pytest.mark.parametrize("name", REALS)
def test_a_number(name):
    more = [] if name in READ else [torch.nn.Parameter(torch.tensor(3.0))]
    held(REALS[name], 3.0, REAL + more, name)


@pytest.mark.parametrize("name", COUNTS)
def test_a_count(name):
    held(COUNTS[name], 3, WHOLE, name)


@pytest.mark.parametrize("name", SEARCHED)
def test_a_number_of_a_search(name):
    held(SEARCHED[name], 3.0, [3, np.float32(3), torch.tensor(3), torch.tensor(3.0).half()], name)


@pytest.mark.parametrize("name", SEARCHED_COUNTS)
def test_a_count_of_a_search(name):
    held(SEARCHED_COUNTS[name], 3, WHOLE[2:5], name)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_seeds_of_samples(dtype):
    call = COUNTS["Run.seed"]
    assert outcome(call(torch.tensor([3, 4], dtype=dtype))) == outcome(call(3))
    for wrong in (torch.tensor([3.0, 4.0]), torch.tensor([True, False])):
        with pytest.raises(ValueError, match=r"Run: seed is torch.*\[2\]; int64 \[2\] is accepted"):
            call(wrong)
