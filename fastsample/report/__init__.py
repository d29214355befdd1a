"""What people read: tables, images, pictures, pages, the state of an installation, a demonstration.

Pictures need matplotlib (extra `demo`), all else nothing.
"""

from .csv import csv
from .demo import demo
from .doctor import EXTRAS, doctor
from .folder import look, write, written
from .images import image_grid, is_image, npy, png, save_images
from .page import page
from .pictures import error_picture, samples_picture, schedules_picture
from .tables import table

__all__ = [
    "EXTRAS",
    "csv",
    "demo",
    "doctor",
    "error_picture",
    "image_grid",
    "is_image",
    "look",
    "npy",
    "page",
    "png",
    "samples_picture",
    "save_images",
    "schedules_picture",
    "table",
    "write",
    "written",
]
