"""On a GPU: the kit, every kernel of every backend there, held to the definition on the CPU."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "kernels")]

from test_kit import COUNTS, compare  # noqa: E402

from fastsample.kernels.backend import BACKENDS  # noqa: E402
from fastsample.runtime.capturable import KIND  # noqa: E402

pytestmark = pytest.mark.gpu


def covered(kernel, name):
    module, like = import_module(f"fastsample.kernels.{name}"), (torch.device(KIND), torch.float32)
    return module.covers("step" if kernel == "fill" else kernel, *like) is None


@pytest.mark.parametrize(
    ("kernel", "backend"),
    [(kernel, name) for kernel in COUNTS for name in BACKENDS[:-1] if covered(kernel, name)],
)
def test_random_configurations(kernel, backend):
    """Of Triton's one in seven, for nearly each of them is compiled by itself."""
    compare(kernel, backend, KIND, 7 if backend == "triton" else 1)
