"""A pytest plugin (-p emulate.package): the package's binary is the emulated one, named by
EMULATED_BINARY, and its CPU tensors go to FS_CUDA there. For a process of its own.
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location


def load(binary):
    spec = spec_from_file_location("fastsample._C", binary)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["fastsample._C"] = module
    from fastsample.kernels import native

    if native._C is not module or module.build_info()["cuda"] != "emulated":
        raise RuntimeError(f"{native._C.__file__} was loaded before {binary}")
    native.device_name, native.stream_of = lambda device: "cuda:1", lambda device: 77


def pytest_configure(config):
    load(os.environ["EMULATED_BINARY"])
