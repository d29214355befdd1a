"""Arrays at chosen addresses: some elements past a multiple of 16 bytes, with canaries around or
ending where their memory ends.
"""

import numpy as np

CANARY = 256
GUARDED = True  # False: no canaries, so that a sanitizer sees the first byte behind an array
MARK = 0xA5


class Array:
    """A copy of `values` that begins `offset` elements past a multiple of 16 bytes."""

    def __init__(self, values, offset=0):
        self.offset, guard = offset, CANARY if GUARDED else 0
        room = values.nbytes + offset * values.itemsize
        self._whole = np.full(room + 2 * guard + (16 if GUARDED else 0), MARK, np.uint8)
        first = guard + (-(self._whole.ctypes.data + guard) % 16 if GUARDED else 0)
        if not GUARDED and self._whole.ctypes.data % 16:
            raise MemoryError("malloc gave less than 16-byte alignment")
        self._at = first + offset * values.itemsize, first + room
        self.values = self._whole[slice(*self._at)].view(values.dtype).reshape(values.shape)
        self.values[...] = values

    @property
    def address(self):
        return self._whole.ctypes.data + self._at[0]

    def copy(self):
        return Array(self.values, self.offset)

    def intact(self):
        """Is nothing written around it?"""
        return bool(
            (self._whole[: self._at[0]] == MARK).all()
            and (self._whole[self._at[1] :] == MARK).all()
        )


def same(a, b):
    """The same bits, any NaN being equal to any other; uint16 holds bfloat16."""
    if a.dtype == np.uint16:
        nan = ((a & 0x7FFF) > 0x7F80) & ((b & 0x7FFF) > 0x7F80)
        return bool((nan | (a == b)).all())
    if a.dtype.kind != "f":
        return bool((a == b).all())
    bits = f"u{a.itemsize}"
    return bool(((np.isnan(a) & np.isnan(b)) | (a.view(bits) == b.view(bits))).all())


def faults(want, got):
    """Names of arrays that differ, and of those around which something was written."""
    flat = [(n, a, b) for n in want for a, b in zip(parts(want[n]), parts(got[n]), strict=True)]
    found = [name for name, a, b in flat if not same(a.values, b.values)]
    return found + [f"around {name}" for name, _, b in flat if not b.intact()]


def parts(value):
    """The arrays that are there, of one or of a list."""
    return [v for v in (value if isinstance(value, list) else [value]) if v is not None]


def copied(arrays):
    copy = lambda a: None if a is None else a.copy()
    return {n: [copy(v) for v in a] if isinstance(a, list) else copy(a) for n, a in arrays.items()}
