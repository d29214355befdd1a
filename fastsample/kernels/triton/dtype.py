"""Numbers of the model's dtype as a kernel reads and writes them, and what a launch is given."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl


@triton.jit
def load(pointer, at, inside):
    """The numbers there, 0 outside; bfloat16 as float32, by its bits."""
    if pointer.dtype.element_ty == tl.bfloat16:
        bits = tl.load(pointer.to(tl.pointer_type(tl.int16), bitcast=True) + at, inside, 0)
        value = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif pointer.dtype.element_ty == tl.float16:
        value = tl.load(pointer + at, inside, 0.0).to(tl.float32)
    else:
        value = tl.load(pointer + at, inside, 0.0)
    return value


@triton.jit
def store(pointer, at, value, inside):
    """Writes values of float32 or float64, rounded once to nearest; to 16 bits by way of float32,
    as torch does. bfloat16 is rounded here, by its bits: the interpreter cuts them off.
    """
    if pointer.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.float32).to(tl.uint32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        upper = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, upper)
        place = pointer.to(tl.pointer_type(tl.int16), bitcast=True) + at
        tl.store(place, upper.to(tl.uint16).to(tl.int16, bitcast=True), inside)
    elif pointer.dtype.element_ty == tl.float16:
        tl.store(pointer + at, value.to(tl.float32).to(tl.float16), inside)
    else:
        tl.store(pointer + at, value.to(pointer.dtype.element_ty), inside)


def on(device: torch.device):
    """Triton launches on the current device; within this, that is this one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def block_of(elements: int, most: int = 1024) -> int:
    """A power of two, at least 16: elements of a program where a sample has so many."""
    return max(16, min(most, triton.next_power_of_2(elements)))
