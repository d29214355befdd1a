"""Devices, streams and errors of FS_CUDA, over an emulated runtime of two devices; and what the
package says of CUDA.
"""

import numpy as np
import pytest
import torch
from c import build as builds
from c.interface import CUDA, NoiseArgs, StatusError
from c.plans import plans
from emulate import build
from emulate.memory import Array

from fastsample.kernels import native

E_UNSUPPORTED, E_DEVICE = -5, -8
# numbers of CUDA's errors
ILLEGAL_ADDRESS, INVALID_CONFIGURATION, NO_DEVICE = 700, 9, 100


@pytest.fixture(scope="module")
def built():
    return build.library()


@pytest.fixture
def lib(built):
    built.fs_emulated_errors(0, 0)
    yield built
    built.fs_emulated_errors(0, 0)


def fill(lib, **words):
    """The numbers that fs_noise_fill wrote."""
    out = Array(np.zeros((1, 8), np.float32))
    lib.fs_noise_fill(NoiseArgs(device=CUDA, batch=1, elements=8, out=out.address, **words))
    return out.values


def refused(lib, status, **words):
    with pytest.raises(StatusError) as error:
        fill(lib, **words)
    assert error.value.status == status
    return str(error.value)


@pytest.mark.slow
def test_a_call_runs_on_its_own_device_and_stream(lib):
    """The device that was current is so again."""
    for gpu, device in ((0, 0), (1, 0), (2, 1)):
        assert fill(lib, gpu=gpu, stream=77).any()
        assert lib.where() == (0, device, 77)


@pytest.mark.slow
def test_a_device_that_is_not_there_is_refused_in_cudas_words(lib):
    launches = lib.count()
    said = refused(lib, E_DEVICE, gpu=3)
    assert said == "fs_noise_fill: CUDA refused to make the device current: error 101 (emulated)"
    assert lib.count() == launches and lib.pending() == 0 and lib.where()[0] == 0
    assert fill(lib).any()


@pytest.mark.slow
def test_a_refused_launch_returns_cudas_words_and_leaves_no_error_behind(lib):
    lib.fs_emulated_errors(0, INVALID_CONFIGURATION)
    said = refused(lib, E_DEVICE, gpu=2)
    assert said == "fs_noise_fill: CUDA refused fill: error 9 (emulated)"
    assert lib.pending() == 0 and lib.where()[0] == 0
    assert fill(lib).any()


@pytest.mark.slow
@pytest.mark.parametrize("error", [ILLEGAL_ADDRESS, INVALID_CONFIGURATION])
def test_an_error_that_was_pending_is_said_to_be_anothers_and_stays(lib, error):
    launches = lib.count()
    lib.fs_emulated_errors(error, 0)
    for _ in range(2):
        said = refused(lib, E_DEVICE)
        assert said == (
            f"fs_noise_fill: an error of another CUDA call is pending: error {error} (emulated); "
            "nothing was started"
        )
    assert lib.pending() == error and lib.count() == launches


@pytest.mark.slow
def test_a_fault_of_an_earlier_kernel_is_not_said_to_be_the_launchs(lib):
    lib.fs_emulated_errors(0, ILLEGAL_ADDRESS)
    said = refused(lib, E_DEVICE)
    assert said == (
        "fs_noise_fill: CUDA reports an error of earlier work: error 700 (emulated); nothing was "
        "started"
    )
    assert lib.pending() == ILLEGAL_ADDRESS


@pytest.mark.slow
def test_a_machine_without_a_gpu_is_told_so(lib):
    lib.fs_emulated_errors(NO_DEVICE, 0)
    said = refused(lib, E_UNSUPPORTED)
    assert said == (
        "fs_noise_fill: CUDA cannot be used here: error 100 (emulated); FS_CPU is accepted"
    )


@pytest.mark.slow
def test_the_example_server_serves_the_same_on_a_device(built, tmp_path):
    """examples/server.c --device cuda, over the emulated kernels and malloc for cudaMalloc."""
    root, tree = builds.ROOT, build.tree()
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-I", root / "csrc/include"]
    link = ["-L", tree, "-lfastsample", f"-Wl,-rpath,{tree}", "-o", tmp_path / "server"]
    device = ["-DSERVER_CUDA", "-I", root / "tests/emulate"]
    builds.run("gcc", *flags, *device, root / "examples/server.c", *link)
    for plan in ("unipc_flow_guided", "heun_churn"):
        words = [root / f"tests/golden/{plan}.fsplan", 5, 3, 1031]
        for kind, name in ((["--device", "cuda"], "device"), ([], "host")):
            builds.run(tmp_path / "server", *kind, *words, tmp_path / name)
        assert (tmp_path / "device").read_bytes() == (tmp_path / "host").read_bytes()


@pytest.mark.slow
def test_a_cpp_engine_serves_the_same_on_a_device(built, tmp_path):
    root, tree = builds.ROOT, build.tree()
    flags = ["-std=c++17", "-pedantic", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    folders = ["-I", root / "csrc/include", "-I", root / "tests/emulate"]
    link = ["-L", tree, "-lfastsample_engine", "-lfastsample", f"-Wl,-rpath,{tree}", "-pthread"]
    source, program = root / "tests/emulate/engine.cpp", tmp_path / "engine"
    builds.run("g++", *flags, *folders, source, *link, "-o", program)
    for name, plan in plans().items():
        plan.save(tmp_path / f"{name}.fsplan")
    said = builds.run(program, *sorted(tmp_path.glob("*.fsplan")))
    assert int(said.split()[0]) > 64


# -- the package -----------------------------------------------------------------------------------
needs_binary = pytest.mark.skipif(native.MISSING is not None, reason="built without _C")


@needs_binary
@pytest.mark.parametrize(
    ("built", "hip", "reason"),
    [
        ("13.0.88 for 80-real", None, None),
        ("off", None, "built without CUDA; FASTSAMPLE_CUDA=on builds it where nvcc is"),
        ("13.0.88 for 80-real", "7.0", "not built for ROCm 7.0, which torch calls cuda"),
    ],
)
def test_native_covers_cuda_where_it_was_built(monkeypatch, built, hip, reason):
    monkeypatch.setattr(native._C, "build_info", lambda: {"cuda": built})
    monkeypatch.setattr(torch.version, "hip", hip)
    for kernel in ("step", "moments", "cost_matrix", "cost_gather"):
        assert native.covers(kernel, torch.device("cuda"), torch.float32) == reason
        assert native.covers(kernel, torch.device("cpu"), torch.float32) is None


@needs_binary
def test_a_device_goes_by_its_number():
    step = native._C.Step(device="cuda:3")
    assert (step.get("device"), step.get("gpu")) == (CUDA, 4)
    step.set("device", "cuda")
    assert (step.get("device"), step.get("gpu")) == (CUDA, 0)
    for name in ("cuda:", "cuda:-1", "cuda:x", "cuda:99999"):
        with pytest.raises(ValueError, match=f"device: '{name}'; cpu and cuda are accepted"):
            step.set("device", name)
