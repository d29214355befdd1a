"""What people read: tables, images, pictures, the state of an installation, the demonstration.

Pictures need matplotlib (extra `demo`), all else nothing.
"""

from .demo import demo
from .doctor import EXTRAS, doctor
from .images import image_grid, npy, png, save_images
from .pictures import error_picture, samples_picture, schedules_picture
from .tables import table

__all__ = [
    "EXTRAS",
    "demo",
    "doctor",
    "error_picture",
    "image_grid",
    "npy",
    "png",
    "samples_picture",
    "save_images",
    "schedules_picture",
    "table",
]
