"""A stand-in for a device that has no float64, as Apple's has none: its tensors lie on the host,
and whatever would make a float64 one among them raises TypeError, as there.

    with slim.there():
        x = torch.zeros(3, device=slim.DEVICE)
"""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from fastsample.kernels import transforms

DEVICE = "slim"
_setup_privateuseone_for_python_backend(DEVICE)
torch.slim.get_amp_supported_dtype = lambda: [torch.bfloat16]


class Slim(Tensor):
    """A tensor there; `own` holds its numbers."""

    @staticmethod
    def __new__(cls, own):
        if own.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"Cannot convert a {DEVICE} Tensor to float64 dtype, which it lacks")
        return Tensor._make_wrapper_subclass(
            cls,
            own.shape,
            strides=own.stride(),
            storage_offset=own.storage_offset(),
            dtype=own.dtype,
            device=torch.device(DEVICE),
        )

    def __init__(self, own):
        self.own = own

    def tolist(self):
        return self.own.tolist()

    def untyped_storage(self):
        return self.own.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


def _call(func, args, kwargs):
    """The op on the host's numbers; its tensors are there where it was asked for, or where its
    arguments are. Numbers of no axis may come from the host, as anywhere.
    """
    given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
    device = kwargs.get("device")
    if device is None:
        there = any(isinstance(v, Slim) for v in given)
    else:
        there, kwargs = torch.device(device).type == DEVICE, {**kwargs, "device": "cpu"}
    moves = func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy)
    if not moves and len({isinstance(v, Slim) for v in given if v.dim()}) > 1:
        raise RuntimeError(f"{func}: tensors on {DEVICE} and cpu")
    known = {id(v.own): v for v in given if isinstance(v, Slim)}
    args, kwargs = tree_map(lambda v: v.own if isinstance(v, Slim) else v, (args, kwargs))
    out = func(*args, **kwargs)
    if not there:
        return out

    def put(v):
        if not isinstance(v, Tensor):
            return v
        return known[id(v)] if id(v) in known else Slim(v)

    return tree_map(put, out)


# torch.tensor(..., device=) goes past every mode
@torch.library.impl("aten::empty_strided", "PrivateUse1")
def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return Slim(torch.empty_strided(size, stride, dtype=dtype))


@torch.library.impl("aten::_copy_from", "PrivateUse1")
def _copy_from(source, to, non_blocking=False):
    own = lambda v: v.own if isinstance(v, Slim) else v
    own(to).copy_(own(source))
    return to


@contextmanager
def there():
    """Tensors may be made there, and are not taken for those of a transform."""
    active, own = transforms.active, lambda v: isinstance(v, Slim)
    with pytest.MonkeyPatch.context() as patch, _Mode():
        patch.setattr(transforms, "active", lambda *vs: active(*(v for v in vs if not own(v))))
        yield
