"""Data sets: any iterable from Python, and what the command line's DATA can name (files, folders, images, a function).

jaxq never makes calibration data up: what is not there, does not fit or cannot be read is an error.
"""

from jaxq.data.check import DataCheck
from jaxq.data.dataset import Dataset
from jaxq.data.images import ImageOptions
from jaxq.data.named import open_data

__all__ = ["DataCheck", "Dataset", "ImageOptions", "open_data"]
