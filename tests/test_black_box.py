"""Models of which nothing is known but what they answer: a process at the other end of two pipes,
and a session of ONNX Runtime. Searches, samplers and polishes ask them as they ask any function.
"""

import copy
import pickle
import struct
import subprocess
import sys
from pathlib import Path

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
def graph(tmp_path_factory):
    """The function as an ONNX file, of x [B,4] and t of this shape; other names on request."""

    def saved(t=("B", 1), sample="x", batch="B", steps=False):
        node, scalar = helper.make_node, lambda name, v: helper.make_tensor(name, 1, [], [v])
        nodes = [
            node("Cast", ["t"], ["time"], to=TensorProto.FLOAT),
            node("Mul", ["time", "time"], ["tt"]),
            node("Add", ["one", "tt"], ["spread"]),
            node("Div", [sample, "spread"], ["near"]),
            node("Abs", [sample], ["size"]),
            node("Add", ["one", "size"], ["above"]),
            node("Div", [sample, "above"], ["bent"]),
            node("Mul", ["quarter", "bent"], ["part"]),
            node("Add", ["near", "part"], ["x0"]),
        ]
        describe = lambda name, shape, kind=TensorProto.FLOAT: helper.make_tensor_value_info(
            name, kind, shape
        )
        kind = TensorProto.INT64 if steps else TensorProto.FLOAT
        given = [describe(sample, [batch, D]), describe("t", list(t), kind)]
        constants = [scalar("one", 1.0), scalar("quarter", 0.25)]
        out = [describe("x0", [batch, D])]
        made = helper.make_graph(nodes, "denoiser", given, out, constants)
        made = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made)
        path = tmp_path_factory.mktemp("onnx") / "denoiser.onnx"
        onnx.save(made, path)
        return path

    return saved


@pytest.fixture(scope="module")
def session(graph):
    """The function as a graph, run by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return fs.interop.onnx(graph(), SCHEDULE, "x0", options=options).fn


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


def test_it_is_served(session):
    """Requests of two plans through an Engine, as the same function in torch is."""
    ends = []
    for subject in (model(session), model(in_torch)):
        plans = [fs.solvers.dpmpp_2m(subject, fs.grids.karras(SCHEDULE, n)) for n in (3, 5)]
        engine = fs.Engine(subject, (D,), capacity=4)
        tickets = [engine.submit(plan, seed=k) for k, plan in enumerate(plans)]
        engine.run()
        ends.append(torch.cat([ticket.result() for ticket in tickets]))
    assert torch.equal(*ends)


def test_a_graph_by_its_own_shapes_and_names(graph):
    """t [B], t of one number, other names, another dtype; a pickle and a copy ask the same."""
    x, t = torch.linspace(-2, 2, 3 * D).view(3, D), torch.full((3,), 0.7)
    each = torch.tensor([0.1, 0.7, 3.0])
    wide = fs.interop.onnx(graph(sample="latent"), SCHEDULE, "x0")
    assert torch.equal(wide(x, each), in_torch(x, each))
    assert wide(x.double(), each).dtype is torch.float64
    assert wide.identity.startswith("sha256:") and len(wide.identity) == 71
    for twin in (pickle.loads(pickle.dumps(wide)), copy.deepcopy(wide)):
        assert torch.equal(twin(x.t().contiguous().t(), each), in_torch(x, each))
    for shape in ((), (1,)):
        one = fs.interop.onnx(graph(shape), SCHEDULE, "x0")
        assert torch.equal(one(x, t), in_torch(x, t))
        with pytest.raises(ValueError, match="^onnx: t of .* is one number for a batch, and times"):
            one(x, each)
    steps = fs.interop.onnx(graph(("B", 1), steps=True), SCHEDULE, "x0")
    whole = torch.tensor([0.0, 7.0, 999.0])
    assert torch.equal(steps(x, whole), in_torch(x, whole))
    with pytest.raises(
        ValueError, match="^onnx: t of .* is of torch.int64, and 0.1 was given; whole"
    ):
        steps(x, each)
    swapped = fs.interop.onnx(graph(), SCHEDULE, "x0", inputs=("x", "t"))
    assert torch.equal(swapped(x, each), in_torch(x, each))


def test_a_pickle_whose_file_has_changed_is_refused(graph, tmp_path):
    """It would ask another network under the identity of the first."""
    path = tmp_path / "network.onnx"
    path.write_bytes(Path(graph()).read_bytes())
    pickled = pickle.dumps(fs.interop.onnx(path, SCHEDULE, "x0"))
    assert pickle.loads(pickled).identity.startswith("sha256:")
    path.write_bytes(Path(graph(sample="latent")).read_bytes())
    said = r"^onnx: .*network.onnx has sha256 \w{12}\.\.\. and had \w{12}\.\.\. when its Model"
    with pytest.raises(ValueError, match=said):
        pickle.loads(pickled)


def test_what_does_not_fit_a_graph(graph, tmp_path):
    x, t = torch.zeros(3, D), torch.ones(3)
    with pytest.raises(ValueError, match=r"inputs = \('x', 'time'\), and .* takes x, t; the names"):
        fs.interop.onnx(graph(), SCHEDULE, "x0", inputs=("x", "time"))
    asked = fs.interop.onnx(graph(), SCHEDULE, "x0")
    for name in "yxt":  # t, by another name in the signature, is told once
        with pytest.raises(
            (ValueError, TypeError), match=f"conditions {name} were given; none of|multiple"
        ):
            asked(x, t, **{name: x})
    with pytest.raises(RuntimeError, match="was called under autograd; ONNX Runtime has no deriv"):
        asked(x.clone().requires_grad_(), t)
    with pytest.raises(
        ValueError, match="^onnx: conditions latent were given; none of .* are accepted$"
    ):
        fs.interop.onnx(graph(sample="latent"), SCHEDULE, "x0").fn(x, t, latent=x)
    fixed = fs.interop.onnx(graph(batch=2), SCHEDULE, "x0")
    with pytest.raises(
        ValueError, match=r"^onnx: x \[3, 4\] was given; \[2, 4\] of .* dynamic axes$"
    ):
        fixed(x, t)
    with pytest.raises(RuntimeError, match="was called under .*; ONNX Runtime has no derivatives"):
        torch.func.jvp(lambda x: fixed(x, t[:2]), (x[:2],), (x[:2],))
    with pytest.raises(FileNotFoundError):
        fs.interop.onnx(tmp_path / "none.onnx", SCHEDULE, "x0")
    helped = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [1, D])
    time = helper.make_tensor_value_info("t", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [1, D])
    made = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [helped, time], [out]
    )
    path = tmp_path / "bf16.onnx"
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    with pytest.raises(
        ValueError, match=r"^onnx: x of .* is a tensor\(bfloat16\); tensor\(float16\)"
    ):
        fs.interop.onnx(path, SCHEDULE, "x0")
