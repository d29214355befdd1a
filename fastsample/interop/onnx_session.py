"""onnx: a Model whose network is an ONNX file, which ONNX Runtime runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..kernels import transforms
from ..model import Model

DTYPES = {
    "tensor(float16)": torch.float16,
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}
ELEMENTS = dict(zip(DTYPES.values(), (10, 1, 11, 7, 6, 9), strict=True))  # ONNX's own numbers


def onnx(
    path: str | os.PathLike,
    schedule: object,
    prediction: str = "eps",
    *,
    inputs: Sequence[str] | None = None,
    providers: Sequence | None = None,
    options: object = None,
    **words,
) -> Model:
    """A Model of the network in an ONNX file: x [B,*], t [B] and conditions by name -> [B,*].

    inputs     the names that x and t have in the graph; by default its first two. All others are
               conditions, taken by their names. t is reshaped to the rank that its input has; where
               that is one number for the whole batch, all t have to be equal
    providers  ONNX Runtime's, such as "CUDAExecutionProvider"; by default the CPU's
    options    an onnxruntime.SessionOptions, for its threads say
    words      the others of `fastsample.Model`; model_id is by default a hash of the file, in which
               weights that lie in files of their own are not

    Nothing is copied where x, t and conditions are contiguous and of the graph's dtypes. There are
    no gradients. Raises ImportError without onnxruntime, ValueError for a graph that does not fit,
    one sentence each, and ONNX Runtime's own errors where it cannot read the file.
    """
    network = Session(path, inputs, providers, options)
    words.setdefault("model_id", f"sha256:{network.sha256}")
    return Model(network, schedule, prediction, **words)


class Session:
    """The network of `onnx`, called with x, t and conditions. A pickle has its path and the file's
    hash, and is refused where the file is another by then.
    """

    def __init__(self, path, inputs=None, providers=None, options=None):
        try:
            import onnxruntime
        except ImportError as error:
            why = "onnx: onnxruntime is not installed; pip install 'fastsample[onnx]'"
            raise ImportError(why) from error
        self.path, self._given = os.fspath(path), (inputs, providers)
        self.sha256 = _hash_of(path)
        providers = providers or ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(self.path, options, providers=providers)
        self._takes = {each.name: each for each in self._session.get_inputs()}
        names = tuple(inputs or self._takes)[:2]
        if len(names) < 2 or not {*names} <= self._takes.keys():
            raise ValueError(
                f"onnx: inputs = {inputs!r}, and {self.path} takes {', '.join(self._takes)}; the "
                "names of x and t among them are accepted"
            )
        self._x, self._t = names
        self._out = self._session.get_outputs()[0]
        kinds = {each.name: each.type for each in (*self._takes.values(), self._out)}
        for name, kind in kinds.items():
            if kind not in DTYPES:
                raise ValueError(
                    f"onnx: {name} of {self.path} is a {kind}; {', '.join(DTYPES)} are accepted"
                )
        self._dtypes = {name: DTYPES[kind] for name, kind in kinds.items()}

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self._check(x, t, cond)
        given = {self._x: x, self._t: self._time(t), **cond}
        binding, held = self._session.io_binding(), []
        for name, value in given.items():
            held.append(self._whole(name, value).contiguous())
            binding.bind_input(name, *_where(held[-1]))
        out = torch.empty(x.shape, dtype=self._dtypes[self._out.name], device=x.device)
        binding.bind_output(self._out.name, *_where(out))
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return out.to(x.dtype)

    def _check(self, x: Tensor, t: Tensor, cond: dict) -> None:
        """Refuse what the graph does not take, and what has no derivatives here."""
        name = transforms.active(x, t, *cond.values())
        grads = (isinstance(v, Tensor) and v.requires_grad for v in (x, t, *cond.values()))
        if name is None and torch.is_grad_enabled() and any(grads):
            name = "autograd"
        if name is not None:
            raise RuntimeError(
                f"onnx: {self.path} was called under {name}; ONNX Runtime has no derivatives, and "
                "calls without one are accepted"
            )
        if {self._x, self._t, *cond} != self._takes.keys() or {self._x, self._t} & cond.keys():
            others = [name for name in self._takes if name not in (self._x, self._t)]
            raise ValueError(
                f"onnx: conditions {', '.join(cond) or 'none'} were given; "
                f"{', '.join(others) or 'none'} of {self.path} are accepted"
            )
        for name, value in cond.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"onnx: {name} is a {type(value).__name__}; a tensor is accepted")
        self._fits(x)

    def _whole(self, name: str, value: Tensor) -> Tensor:
        """In the dtype that the graph takes; ValueError where that would cut numbers."""
        dtype, value = self._dtypes[name], value.detach()
        cut = not dtype.is_floating_point and value.is_floating_point()
        if cut and bool((value != value.round()).any()):
            raise ValueError(
                f"onnx: {name} of {self.path} is of {dtype}, and {value.flatten()[0]:g} was given; "
                "whole numbers are accepted (fs.Model's time_dtype= rounds t)"
            )
        return value.to(dtype)

    def _time(self, t: Tensor) -> Tensor:
        """t [B] in the shape that the graph takes it in."""
        shape = self._takes[self._t].shape
        if len(shape) == 0 or (shape[0] == 1 and len(t) > 1):
            if bool((t != t[:1]).any()):
                raise ValueError(
                    f"onnx: {self._t} of {self.path} is one number for a batch, and times "
                    f"{t.tolist()} were given; equal ones are accepted"
                )
            t = t[:1]
        return t.reshape([len(t), *[1] * (len(shape) - 1)] if shape else [])

    def _fits(self, x: Tensor) -> None:
        """Refuse an x of other sizes than the graph was exported with."""
        shape = self._takes[self._x].shape
        fixed = [n if isinstance(n, int) else None for n in shape]
        pairs = zip(fixed, x.shape, strict=False)
        if len(fixed) != x.dim() or any(n not in (None, m) for n, m in pairs):
            raise ValueError(
                f"onnx: x {list(x.shape)} was given; {shape} of {self.path} is accepted, and "
                "others where it is exported with dynamic axes"
            )

    def __deepcopy__(self, memo: dict) -> Session:
        return self  # a session holds no state of its runs

    def __reduce__(self) -> tuple:
        return _opened, (self.path, self.sha256, *self._given)


def _opened(path: str, sha256: str, *given: object) -> Session:
    """The network again that was pickled; ValueError, one sentence, where the file has changed."""
    found = _hash_of(path)
    if found != sha256:
        raise ValueError(
            f"onnx: {path} has sha256 {found:.12}... and had {sha256:.12}... when its Model was "
            "pickled; the file as it was, or a Model made of it anew, is accepted"
        )
    return Session(path, *given)


def _hash_of(path: str | os.PathLike) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _where(value: Tensor) -> tuple:
    """What a binding is told of a tensor: device, its number, element type, shape and address."""
    device = value.device
    return device.type, device.index or 0, ELEMENTS[value.dtype], [*value.shape], value.data_ptr()
