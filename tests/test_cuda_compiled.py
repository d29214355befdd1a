"""What nvcc makes of csrc/cuda for sm_90: nothing spilled, nothing contracted where bits are
promised, 16-byte accesses, and a library that loads on a machine without a driver.
"""

import json
import re
import shutil
import sys
from functools import lru_cache

import numpy as np
import pytest
from c import build
from c.interface import CUDA, Library, NoiseArgs, StatusError, address

sys.path.insert(0, str(build.ROOT / "tools"))
import ptx_table  # noqa: E402

pytestmark = [
    pytest.mark.slow,  # compiles with nvcc
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc was not found"),
]


@lru_cache(None)
def kernels(source):
    return ptx_table.compiled(source, "sm_90")


@pytest.mark.parametrize("source", ptx_table.SOURCES)
def test_nothing_spills_and_nothing_is_contracted(source):
    assert kernels(source)
    for kernel in kernels(source):
        assert kernel.local == 0, kernel
        # fma on purpose: costs, whose bits are not promised; products that are exact in float64
        meant = kernel.name.startswith(("cost_tiles", "cost_pairs", "moments<"))
        assert kernel.fused == 0 or (meant and "moments<double" not in kernel.name), kernel


# slots, branches -> 16-byte loads of a quad whose outputs are float32
FORMS = {(1, 1, "false"): 3, (4, 2, "false"): 7, (4, 2, "true"): 7}
FORMS |= {(10, 1, "false"): 12, (10, 2, "false"): 13}


def test_step_uniform_asks_for_every_operand_at_once():
    found = {kernel.name: kernel for kernel in kernels("step_uniform")}
    assert len(found) == 15
    for (slots, branches, noise), loads in FORMS.items():
        for dtype, wide in (("float", loads), ("Half", loads - branches)):
            kernel = found[f"step_uniform<{dtype}, {slots}, {branches}, {noise}>"]
            assert kernel.loads == 2 * wide  # before the loop, and in it for the next turn
            assert kernel.stores >= 3
            if kernel.ahead is not None:
                assert kernel.ahead == wide, kernel
            if kernel.ffma is not None and noise == "false":
                assert kernel.ffma == 0, kernel


def test_moments_ask_for_a_quad_of_every_tensor_at_once():
    found = {kernel.name: kernel for kernel in kernels("moments")}
    for dtype, words in (("float", 4), ("double", 8)):
        for P, take in ((1, 4), (2, 2), (3, 2), (4, 2), (5, 2)):
            kernel = found[f"moments<{dtype}, {P}, true>"]
            assert kernel.loads == (P + take) * words // 4
            assert kernel.ahead in (None, kernel.loads), kernel


@lru_cache(None)
def installed():
    """Not optimised: what the library says, needs and links is asked of it, no number."""
    options = ("-DFASTSAMPLE_CUDA=on", "-DCMAKE_CUDA_ARCHITECTURES=90-real")
    options += ("-DCMAKE_CUDA_FLAGS=-Xcicc -O0 -Xptxas -O0",)
    return build.installed("cuda", "[0-9.]+ for 90-real", (*build.PLAIN[:1], *options))


def test_the_library_loads_without_a_driver_and_names_its_architectures():
    prefix, _ = installed()
    folder = next(prefix.glob("lib*/libfastsample.so")).parent
    ptx_table.example("-L", folder, "-lfastsample", "-o", prefix / "server")
    needed = build.run("readelf", "-d", folder / "libfastsample.so")
    assert not re.search(r"libcuda|cudart", needed)
    lib = Library(folder / "libfastsample.so")
    assert re.fullmatch(r"[\d.]+ for 90-real", json.loads(lib.fs_build_info())["cuda"])
    out = np.zeros((1, 8), np.float32)
    lib.fs_noise_fill(NoiseArgs(batch=1, elements=8, out=address(out)))
    assert out.all()
    if shutil.which("nvidia-smi") is None:
        with pytest.raises(StatusError, match="fs_noise_fill: CUDA cannot be used here: "):
            lib.fs_noise_fill(NoiseArgs(device=CUDA, batch=1, elements=8, out=address(out)))


def test_an_engines_memory_compiles_and_says_that_there_is_no_gpu(tmp_path):
    source = tmp_path / "memory.cu"
    source.write_text("""
#include <cstdio>
#include <fastsample/cuda_memory.hpp>
#include <fastsample/engine.hpp>

int main() try {
  fastsample::CudaMemory memory;
  void* taken = memory.take(256);
  memory.copy(taken, &memory, 8), memory.wait(), memory.give(taken, 256);
  return std::puts("done"), 0;
} catch (const fastsample::Error& error) {
  return std::printf("%d %s\\n", error.status(), error.what()), 0;
}
""")
    folder = build.ROOT / "csrc/include"
    flags = ["-std=c++17", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
    build.run("nvcc", *flags, f"-I{folder}", source, "-o", tmp_path / "memory")
    said = build.run(tmp_path / "memory")
    if shutil.which("nvidia-smi") is None:
        assert re.match(r"-8 CudaMemory: cuda(GetDevice|Malloc): ", said)
    else:
        assert said == "done\n"


def test_users_link_either_library_with_cuda_and_are_told_of_it(tmp_path):
    """By find_package, of which build.installed asks it, and as fastsample.pc says; the static one
    brings CUDA's static runtime.
    """
    prefix, programs = installed()
    assert re.fullmatch(r"[\d.]+ for 90-real", build.package(prefix)["cuda"])
    found = [programs / "version_1", programs / "version_1_static"]
    found += [program for kind, _, program in build.linked(prefix, tmp_path) if kind == "c99"]
    for program in found:
        assert build.run(program) == "as in version 1\n"
        assert not re.search(r"libcuda|cudart", build.run("readelf", "-d", program))
        own = "step_uniform" in build.run("nm", program)
        assert own == ("static" in program.name)
