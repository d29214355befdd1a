"""Models of which nothing is known but what they answer: a process at the other end of two pipes,
and a session of ONNX Runtime. Searches, samplers and polishes ask them as they ask any function.
"""

import struct
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from worlds import few_by_hand

import fastsample as fs
from fastsample import metrics

SCHEDULE, D = fs.schedules.EDM(), 4
pytestmark = pytest.mark.filterwarnings("ignore:.* the teacher .* agrees to")


def in_torch(x, t):
    """Exactly rounded operations, which have the same bits wherever they are done."""
    t = t[:, None]
    return x / (1 + t * t) + 0.25 * (x / (1 + x.abs()))


OTHER_END = """
import struct, sys
import numpy as np
one, quarter = np.float32(1), np.float32(0.25)
while head := sys.stdin.buffer.read(8):
    n, d = struct.unpack("<ii", head)
    read = lambda *shape: np.frombuffer(
        sys.stdin.buffer.read(4 * int(np.prod(shape))), np.float32).reshape(shape)
    x, t = read(n, d), read(n, 1)
    said = x / (one + t * t) + quarter * (x / (one + abs(x)))
    sys.stdout.buffer.write(said.astype(np.float32).tobytes())
    sys.stdout.buffer.flush()
"""


@pytest.fixture(scope="module")
def piped():
    """The function in a process of its own."""
    words = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", OTHER_END], **words) as process:

        @torch.no_grad()
        def ask(x, t):
            data = (np.ascontiguousarray(v.numpy()).tobytes() for v in (x, t))
            process.stdin.write(struct.pack("<ii", *x.shape) + b"".join(data))
            process.stdin.flush()
            return torch.frombuffer(
                bytearray(process.stdout.read(4 * x.numel())), dtype=torch.float32
            ).reshape(x.shape)

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def session():
    """The function as a graph, run by ONNX Runtime."""
    node, scalar = helper.make_node, lambda name, v: helper.make_tensor(name, 1, [], [v])
    nodes = [
        node("Mul", ["t", "t"], ["tt"]),
        node("Add", ["one", "tt"], ["spread"]),
        node("Div", ["x", "spread"], ["near"]),
        node("Abs", ["x"], ["size"]),
        node("Add", ["one", "size"], ["above"]),
        node("Div", ["x", "above"], ["bent"]),
        node("Mul", ["quarter", "bent"], ["part"]),
        node("Add", ["near", "part"], ["x0"]),
    ]
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, None]) for n in "xt"]
    out = [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [None, None])]
    constants = [scalar("one", 1.0), scalar("quarter", 0.25)]
    graph = helper.make_graph(nodes, "denoiser", given, out, constants)
    opset = helper.make_opsetid("", 17)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(made)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    own = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def ask(x, t):
        (said,) = own.run(["x0"], {"x": x.numpy(), "t": t[:, None].numpy()})
        return torch.from_numpy(said)

    return ask


@pytest.fixture(params=["piped", "session"])
def black(request):
    return model(request.getfixturevalue(request.param))


def model(fn):
    return fs.Model(fn, SCHEDULE, "x0", model_id="black box")


def fine():
    return fs.solvers.dpmpp_2m(model(in_torch), fs.grids.fine(SCHEDULE, 8))


def found(subject):
    """The plans of every kind of search, with their notes, and samples of one."""
    words = {"teacher": fine(), "seed": 3}
    fit = fs.optimize.fit(subject, [16, D], 2, beam=1, **words)
    polished = fs.optimize.polish(subject, [8, D], fit, iterations=1, seed=4, jvp=False)
    search = fs.optimize.search(subject, [48, D], [2], iterations=1, beam=1, **words)
    assert [rung.name for rung in search.rungs] == ["by hand", "model-free", "fit", "polish"]
    plans = [fit.plans[1], fit.plans[2], polished.plans[2], search.plans[2]]
    z = torch.randn(5, D, generator=torch.Generator().manual_seed(1))
    return [plan.to_json() for plan in plans], fs.Sampler(search.plan, subject)(noise=z)


def test_it_is_searched_and_sampled_as_the_same_function_in_torch(black, monkeypatch):
    monkeypatch.setattr(metrics, "by_hand", few_by_hand)
    (plans, end), (ours, same) = found(black), found(model(in_torch))
    assert plans == ours
    assert torch.equal(end, same)


def test_no_derivative_is_asked_of_it(black):
    plan = fs.solvers.euler(black, [5.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="^polish: jvp=True, and the .* jvp=False is accepted$"):
        fs.optimize.polish(black, [8, D], plan, teacher=fine(), seed=4, jvp=True)
