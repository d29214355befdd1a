"""The structs of fastsample.h in ctypes, and a call that raises with the library's sentence."""

import ctypes
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)

import numpy as np

OK, E_ARG, E_FILE, E_FORMAT, E_MEMORY, E_UNSUPPORTED, E_HANDLE = 0, -1, -2, -3, -4, -5, -6
CPU, CUDA = 0, 1
STORED = (np.float32, np.float64, np.float16, np.uint16)  # bfloat16 travels as uint16
DTYPES = {np.dtype(dtype): k for k, dtype in enumerate(STORED)}


def struct(name, *fields):
    """A ctypes struct whose first field, struct_size, is filled in."""

    def init(self, **values):
        ctypes.Structure.__init__(self, struct_size=ctypes.sizeof(type(self)), **values)

    return type(
        name,
        (ctypes.Structure,),
        {"_fields_": [("struct_size", c_uint32), *fields], "__init__": init},
    )


def many(kind, names):
    return [(name, kind) for name in names.split()]


Dims = struct("fs_dims", *many(c_int32, "S G L K E"))
Info = struct(
    "fs_info",
    *many(c_int32, "rows S G L K E operands nfe"),
    ("note_bytes", c_int64),
    ("sha256", c_uint32 * 8),
)
RowInfo = struct(
    "fs_row_info",
    *many(c_int32, "call entry du dv"),
    *many(c_uint32, "branches known_reads"),
    ("reads", c_uint64),
    ("ids", c_int64 * 8),
    *many(c_double, "p q clip c"),
    ("t", c_double * 4),
    *many(c_double, "dx dm alpha sigma"),
)
StepArgs = struct(
    "fs_step_args",
    *many(c_int32, "device state_dtype model_dtype"),
    *many(c_int64, "batch elements pool outputs groups inner"),
    *many(c_int32, "S G L K E copies"),
    ("table_rows", c_int64),
    *many(c_void_p, "table_f table_i x slots"),
    ("f", c_void_p * 8),
    *many(c_void_p, "model_input row place f_index scale seed noise_scale weights bound"),
    ("noise", c_void_p * 8),
    ("mask", c_void_p),
    ("mask_batch_stride", c_int64),
    ("known", c_void_p),
    ("known_batch_stride", c_int64),
    *many(c_void_p, "t_out preview status"),
    *many(c_int32, "threads reserved"),
    ("stream", c_void_p),
    *many(c_void_p, "x_in x_out stage row_words"),
    *many(c_int32, "one_row row_number t_dtype reserved_2"),
    *many(c_int64, "slot_stride gpu channels"),
)
NoiseArgs = struct(
    "fs_noise_args",
    *many(c_int32, "device dtype"),
    ("id", c_uint32),
    *many(c_int64, "batch elements"),
    *many(c_void_p, "seed out"),
    *many(c_int32, "threads reserved"),
    *many(c_void_p, "stream stage"),
    ("gpu", c_int64),
)
MomentsArgs = struct(
    "fs_moments_args",
    *many(c_int32, "device dtype P Q threads"),
    *many(c_int64, "batch elements"),
    ("a", c_void_p * 5),
    ("b", c_void_p * 24),
    *many(c_void_p, "dots max_abs stream workspace"),
    ("workspace_bytes", c_int64),
    ("gpu", c_int64),
)
CostArgs = struct(
    "fs_cost_args",
    *many(c_int32, "device dtype terms"),
    *many(c_int64, "batch I J D"),
    ("U", c_void_p * 4),
    *many(c_void_p, "c X band i_star"),
    ("i_star_batch_stride", c_int64),
    ("p", c_double),
    ("out", c_void_p),
    *many(c_int32, "threads reserved"),
    *many(c_void_p, "stream workspace"),
    ("workspace_bytes", c_int64),
    ("gpu", c_int64),
)


class StatusError(Exception):
    """A call that did not return FS_OK: .status and the sentence."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class Library:
    """libfastsample.so; `lib.fs_step(args)` raises StatusError unless it returns FS_OK."""

    def __init__(self, path):
        self.dll = ctypes.CDLL(str(path))
        for name in ("fs_last_error", "fs_version", "fs_build_info", "fs_plan_note"):
            getattr(self.dll, name).restype = c_char_p
        self.dll.fs_plan_note.argtypes = [c_void_p]
        self.dll.fs_plan_parse.argtypes = [c_char_p, c_size_t, POINTER(c_void_p)]
        self.dll.fs_plan_free.argtypes = [c_void_p]
        self.dll.fs_plan_row.argtypes = [c_void_p, c_int64, c_void_p]
        self.dll.fs_plan_init_scale.argtypes = [c_void_p, POINTER(c_double)]
        self.dll.fs_plan_info.argtypes = [c_void_p, c_void_p]
        self.dll.fs_plan_pack.argtypes = [
            c_void_p,
            c_void_p,
            c_int32,
            c_void_p,
            c_int64,
            c_void_p,
            c_int64,
        ]

    def __getattr__(self, name):
        function = getattr(self.dll, name)
        if function.restype is not c_int:
            return function

        def call(*args):
            status = function(
                *(ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in args)
            )
            if status != OK:
                raise StatusError(status, self.dll.fs_last_error().decode())

        return call

    def parse(self, data):
        """A plan's handle; free it with fs_plan_free."""
        handle = c_void_p()
        self.fs_plan_parse(data, len(data), ctypes.byref(handle))
        return handle

    def sha256(self, handle):
        """A parsed plan's digest in hexadecimal."""
        info = Info()
        self.fs_plan_info(handle, info)
        return bytes(info.sha256).hex()

    def pack(self, handle, dtype, **dims):
        """(floats [R,WF], ints [R,WI]) of a parsed plan, with its own dims or larger ones."""
        info = Info()
        self.fs_plan_info(handle, info)
        size = Dims(**{k: dims.get(k, getattr(info, k)) for k in "SGLKE"})
        wide, words = c_int64(), c_int64()
        self.fs_table_size(size, ctypes.byref(wide), ctypes.byref(words))
        floats = np.empty((info.rows, wide.value), dtype)
        ints = np.empty((info.rows, words.value), np.int32)
        self.fs_plan_pack(
            handle,
            size,
            DTYPES[np.dtype(dtype)],
            address(floats),
            floats.size,
            address(ints),
            ints.size,
        )
        return floats, ints


def address(array):
    """Address of an array's first number; None stays None."""
    return None if array is None else array.ctypes.data


def step_args(dims, **values):
    """StepArgs from NumPy arrays and numbers; lists fill f and noise. dims: S, G, L, K, E."""
    args = StepArgs(**dims, groups=1, copies=1)
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            for k, part in enumerate(value):
                getattr(args, name)[k] = address(part)
        else:
            setattr(args, name, address(value) if isinstance(value, np.ndarray) else value)
    return args
