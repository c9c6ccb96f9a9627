"""Image files as a model's input: size, colours, normalization, layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxq.errors import CalibrationError, ConfigError, Option, RuntimeMissingError
from jaxq.graph.ir import TensorType

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
COLORS = {"rgb": 3, "bgr": 3, "gray": 1}  # colour order -> channels

Size = int | tuple[int, int]  # the shorter side (for a crop: both sides), or (height, width)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What becomes of a picture on its way to the model. Sizes are in pixels; None leaves it to the model's input.

    Attributes:
      resize: the shorter side, or (height, width); None: as small as the crop allows, or not at all.
      crop: the part of the centre that is kept: one number for both sides, or (height, width).
      central_fraction: in place of both: the part of each side that is kept, then stretched to the model's size.
      mean: subtracted from pixels, which go from 0 to 255; one value, or one for each channel; None: 0.
      std: what pixels are then divided by; None: 1.
      layout: "NCHW" or "NHWC".
      color: "rgb", "bgr" or "gray".
    """

    resize: Size | None = None
    crop: Size | None = None
    central_fraction: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    color: str | None = None


@dataclass(frozen=True)
class ImageReader:
    """Turns the path of an image into {input name: array [1, C, H, W] or [1, H, W, C]}.

        x = (pixel - mean) / std,   pixel in 0..255

    The picture is resized (bilinear, as pillow does it), its centre is cut out, its colours are ordered. With a central
    fraction it is the other way round: the centre is cut out, and stretched to the model's size, whatever its proportions.

    Attributes:
      name, wanted: the input, and what the model declares of it.
      resize: see `ImageOptions`.
      crop: (height, width) of the centre that is kept; None keeps all.
      central_fraction: see `ImageOptions`.
      mean, std: float32 [1] or [C], in the model's order of colours.
      layout, color: see `ImageOptions`.
    """

    name: str
    wanted: TensorType
    resize: Size | None
    crop: tuple[int, int] | None
    central_fraction: float | None
    mean: np.ndarray
    std: np.ndarray
    layout: str
    color: str

    @classmethod
    def of(cls, declared: Mapping[str, TensorType], options: ImageOptions) -> ImageReader:
        """The options; what they leave open (size, layout, number of channels) is what the model's input says.

        Raises:
          ConfigError: an option is wrong or does not fit the input.
          RuntimeMissingError: pillow is not installed.
        """
        try:
            import PIL.Image  # noqa: F401
        except ImportError:
            raise RuntimeMissingError("images need pillow: pip install 'jaxq[images]'") from None
        name, wanted = _image_input(declared)
        layout = _layout(name, wanted, options.layout)
        shape = wanted.shape or (None,) * 4
        channels, height, width = shape[1:] if layout == "NCHW" else (shape[3], *shape[1:3])
        color = _color(name, wanted, channels, options.color)
        crop = (options.crop, options.crop) if isinstance(options.crop, int) else options.crop
        if isinstance(height, int) and isinstance(width, int):
            if crop not in (None, (height, width)):
                raise ConfigError(
                    Option(("crop",), crop), f", but input {name!r} is {wanted}: pictures must be {height} x {width}"
                )
            crop = (height, width)
        for key, size in (("resize", options.resize), ("crop", crop)):
            if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
                raise ConfigError(Option((key,), size), "; expected pixels, at least 1")
        _check_fraction(options, crop, name, wanted)
        mean, std = _normalization(options, COLORS[color], wanted)
        return cls(name, wanted, options.resize, crop, options.central_fraction, mean, std, layout, color)

    def __call__(self, path: Path) -> dict[str, np.ndarray]:
        """The input made from one image file.

        Raises:
          CalibrationError: the file cannot be read as an image, or is smaller than the crop.
        """
        from PIL import Image

        try:
            with Image.open(path) as file:
                picture = file.convert("L" if self.color == "gray" else "RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise CalibrationError(f"image {str(path)!r} cannot be read: {error}. Repair or remove it") from None
        pixels = np.asarray(self._framed(picture, path))
        pixels = pixels.reshape(*pixels.shape[:2], COLORS[self.color])
        if self.color == "bgr":
            pixels = pixels[..., ::-1]
        if self.wanted.dtype != "uint8":
            pixels = ((pixels.astype(np.float32) - self.mean) / self.std).astype(self.wanted.dtype)
        return {self.name: np.ascontiguousarray(pixels.transpose(2, 0, 1) if self.layout == "NCHW" else pixels)[None]}

    def _framed(self, picture: Image, path: Path) -> Image:
        """The picture resized and its centre cut out."""
        from PIL.Image import Resampling

        width, height = picture.size
        if self.central_fraction is not None and self.crop is not None:
            left, top = (round(side * (1 - self.central_fraction) / 2) for side in (width, height))
            centre = picture.crop((left, top, width - left, height - top))
            return centre.resize(self.crop[::-1], Resampling.BILINEAR)
        if isinstance(self.resize, tuple):
            new_height, new_width = self.resize
        elif self.resize is not None:
            new_height, new_width = _scaled(height, width, self.resize / min(height, width))
        elif self.crop is not None:
            new_height, new_width = _scaled(height, width, max(self.crop[0] / height, self.crop[1] / width))
        else:
            return picture
        if (new_height, new_width) != (height, width):
            picture = picture.resize((new_width, new_height), Resampling.BILINEAR)
        if self.crop is None or self.crop == (new_height, new_width):
            return picture
        top, left = (new_height - self.crop[0]) // 2, (new_width - self.crop[1]) // 2
        if top < 0 or left < 0:
            raise CalibrationError(
                f"image {str(path)!r} is {new_height} x {new_width} after resizing, smaller than what is to be "
                f"cut out of it, {self.crop[0]} x {self.crop[1]}; resize to more"
            )
        return picture.crop((left, top, left + self.crop[1], top + self.crop[0]))


def _scaled(height: int, width: int, factor: float) -> tuple[int, int]:
    return max(round(height * factor), 1), max(round(width * factor), 1)


def _image_input(declared: Mapping[str, TensorType]) -> tuple[str, TensorType]:
    if len(declared) != 1:
        raise ConfigError(
            f"a folder of images serves models with one input; this one has {list(declared)}. "
            "Give an .npz with these keys, or package.module:function"
        )
    ((name, wanted),) = declared.items()
    if wanted.shape is not None and len(wanted.shape) != 4:
        raise ConfigError(
            f"input {name!r} is {wanted}, which takes no images (rank 4); give an .npz or package.module:function"
        )
    if wanted.dtype not in ("float32", "float16", "float64", "uint8"):
        raise ConfigError(f"input {name!r} is {wanted}; images are given as float or uint8. Give an .npz instead")
    return name, wanted


def _layout(name: str, wanted: TensorType, layout: str | None) -> str:
    """The layout asked for, checked; else the one whose channel axis has 1 or 3 entries."""
    if layout is not None:
        if layout.upper() not in ("NCHW", "NHWC"):
            raise ConfigError(Option(("layout",), layout), "; expected 'NCHW' or 'NHWC'")
        return layout.upper()
    shape = wanted.shape or (None,) * 4
    if shape[1] in (1, 3):
        return "NCHW"
    if shape[3] in (1, 3):
        return "NHWC"
    raise ConfigError(
        f"input {name!r} is {wanted}: its channel axis cannot be told; say ", Option(("layout",)), " NCHW or NHWC"
    )


def _check_fraction(options: ImageOptions, size: tuple[int, int] | None, name: str, wanted: TensorType) -> None:
    """Refuses a central fraction that is none, or that there is no size to stretch it to."""
    fraction = options.central_fraction
    if fraction is None:
        return
    if not 0 < fraction <= 1:
        raise ConfigError(Option(("central_fraction",), fraction), "; expected a number above 0 and at most 1")
    if options.resize is not None:
        raise ConfigError(
            Option(("central_fraction",)),
            " and ",
            Option(("resize",)),
            " exclude each other: the part that is kept gets the model's size",
        )
    if size is None:
        raise ConfigError(
            Option(("central_fraction",), fraction),
            f" needs a size to stretch pictures to, but input {name!r} is {wanted}; say ",
            Option(("crop",)),
        )


def _color(name: str, wanted: TensorType, channels: int | str | None, color: str | None) -> str:
    """The colour order asked for, checked; else RGB for 3 channels (or a free number), gray for 1."""
    color = (color or ("gray" if channels == 1 else "rgb")).lower()
    if color not in COLORS:
        raise ConfigError(Option(("color",), color), f"; expected one of {', '.join(map(repr, COLORS))}")
    if isinstance(channels, int) and channels != COLORS[color]:
        raise ConfigError(
            Option(("color",)),
            f" {color!r} has {COLORS[color]} channels, but input {name!r} is {wanted}, with {channels}",
        )
    return color


def _normalization(options: ImageOptions, channels: int, wanted: TensorType) -> tuple[np.ndarray, np.ndarray]:
    """mean and std as float32 [1] or [channels].

    Values for pixels from 0 to 1 are a common mistake here. They show in a std below 1.
    """
    if wanted.dtype == "uint8" and (options.mean or options.std):
        raise ConfigError(
            Option(("mean",)),
            ", ",
            Option(("std",)),
            ": the model's input is uint8, so it takes the pixels as they are",
        )
    mean, std = np.array(options.mean or (0.0,), np.float32), np.array(options.std or (1.0,), np.float32)
    for key, array in (("mean", mean), ("std", std)):
        if len(array) not in (1, channels) or not np.isfinite(array).all():
            raise ConfigError(
                Option((key,)), f" = {_listing(array)}; expected one finite number, or {channels}: one for each channel"
            )
    if (std <= 0).any():
        raise ConfigError(Option(("std",)), f" = {_listing(std)}; expected numbers above 0")
    if (std < 1).any():
        raise ConfigError(
            Option(("std",)),
            f" = {_listing(std)} is meant for pixels from 0 to 1, but here they go from 0 to 255; with everything times 255, "
            f"mean is {_listing(mean * 255)} and std {_listing(std * 255)}",
        )
    return mean, std


def _listing(values: np.ndarray) -> str:
    return ",".join(f"{value:g}" for value in values)
