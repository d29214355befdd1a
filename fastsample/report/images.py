"""Images on one sheet, and the files of samples: PNG and .npy, written whole or not at all."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_whole


def is_image(shape: Sequence[int]) -> bool:
    """Is a sample of this shape an image, [C,H,W] with C = 1 or 3 or [H,W]?"""
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3)))


def image_grid(images: Any, columns: int | None = None, pad: int = 2) -> np.ndarray:
    """uint8 [H,W] or [H,W,3] from images [B,C,H,W] or [B,H,W] in [-1,1] with C = 1 or 3; values
    outside are clipped, NaN is shown black.
    """
    x = float32(images)
    if not is_image(x.shape[1:]) or 0 in x.shape:
        raise ValueError(
            f"image_grid: images of shape {list(np.shape(images))}; [B,C,H,W] with C = 1 or 3, or "
            "[B,H,W], is accepted"
        )
    x = x[:, None] if x.ndim == 3 else x
    B, C, H, W = x.shape
    columns = columns or int(np.ceil(np.sqrt(B)))
    rows = -(-B // columns)
    pixels = np.rint(np.clip(np.nan_to_num(x, nan=-1.0), -1, 1) * 127.5 + 127.5).astype(np.uint8)
    sheet = np.full((rows * (H + pad) + pad, columns * (W + pad) + pad, C), 255, np.uint8)
    for b in range(B):
        top, left = pad + (b // columns) * (H + pad), pad + (b % columns) * (W + pad)
        sheet[top : top + H, left : left + W] = pixels[b].transpose(1, 2, 0)
    return sheet[..., 0] if C == 1 else sheet


def png(pixels: np.ndarray) -> bytes:
    """A PNG file (RFC 2083) of uint8 [H,W] (grey) or [H,W,3] (RGB)."""
    height, width = pixels.shape[:2]
    filters = np.zeros((height, 1), np.uint8)  # filter 0 before each line
    lines = np.hstack([filters, np.ascontiguousarray(pixels).reshape(height, -1)])
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for body in (b"IHDR" + head, b"IDAT" + zlib.compress(lines.tobytes(), 9), b"IEND"):
        data += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data


def save_images(path: str | Path, images: Any, columns: int | None = None, zoom: int = 3) -> None:
    """Write images [B,C,H,W] in [-1,1] as one PNG, each pixel zoom x zoom, whole or not at all."""
    sheet = image_grid(images, columns)
    write_whole(path, png(sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)))


def npy(images: Any) -> bytes:
    """A .npy file (format 1.0) of a tensor or array, float32."""
    data = io.BytesIO()
    np.save(data, float32(images), allow_pickle=False)
    return data.getvalue()


def float32(images: Any) -> np.ndarray:
    x = images.detach().float().cpu().numpy() if hasattr(images, "detach") else images
    return np.asarray(x, np.float32)
