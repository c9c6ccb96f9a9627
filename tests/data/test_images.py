"""Image files as inputs."""

import numpy as np
import pytest

from jaxq.data.images import ImageOptions, ImageReader
from jaxq.errors import CalibrationError, ConfigError
from jaxq.graph.ir import TensorType

pillow = pytest.importorskip("PIL.Image")

NCHW = TensorType("float32", ("N", 3, 4, 6))
NHWC = TensorType("float32", ("N", 4, 6, 3))
GRAY = TensorType("float32", ("N", 1, 4, 6))
FREE = TensorType("float32", ("N", 3, "H", "W"))


def reader(wanted: TensorType = NCHW, **options) -> ImageReader:
    return ImageReader.of({"x": wanted}, ImageOptions(**options))


@pytest.fixture
def picture(tmp_path):
    """A function that saves uint8 [H, W, 3] losslessly and gives the path."""

    def save(pixels: np.ndarray):
        path = tmp_path / "picture.png"
        pillow.fromarray(pixels).save(path)
        return path

    return save


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def test_a_picture_of_the_right_size_is_taken_pixel_by_pixel(picture):
    np.testing.assert_array_equal(reader()(picture(PIXELS))["x"], PIXELS.transpose(2, 0, 1)[None].astype(np.float32))


def test_the_layout_follows_from_the_input(picture):
    np.testing.assert_array_equal(reader(NHWC)(picture(PIXELS))["x"], PIXELS[None])


def test_colours_can_be_turned_round(picture):
    np.testing.assert_array_equal(reader(NHWC, color="BGR")(picture(PIXELS))["x"], PIXELS[None, ..., ::-1])


def test_one_channel_means_gray(picture):
    image = np.repeat(PIXELS[..., :1], 3, axis=2)
    np.testing.assert_array_equal(reader(GRAY)(picture(image))["x"], PIXELS[None, None, ..., 0])


def test_mean_and_std_are_of_pixels_up_to_255_in_the_order_of_the_colours(picture):
    mean, std = (104.0, 117.0, 123.0), (1.0, 2.0, 4.0)
    x = reader(NHWC, color="bgr", mean=mean, std=std)(picture(PIXELS))["x"]
    np.testing.assert_array_equal(x, (PIXELS[None, ..., ::-1].astype(np.float32) - np.float32(mean)) / np.float32(std))
    assert x.dtype == np.float32


def test_an_input_of_bytes_takes_the_pixels_as_they_are(picture):
    x = reader(TensorType("uint8", NHWC.shape))(picture(PIXELS))["x"]
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, PIXELS[None])


def test_half_precision_is_given_where_the_model_wants_it(picture):
    assert reader(TensorType("float16", NHWC.shape), std=(255.0,))(picture(PIXELS))["x"].dtype == np.float16


def test_a_larger_picture_is_scaled_until_the_crop_fits_and_cut_in_the_centre(picture):
    wide = np.zeros((8, 40, 3), np.uint8)
    wide[:, 12:28] = 200  # scaled by a half: columns 6 to 13 of 20; the six in the centre are 7 to 12
    x = reader()(picture(wide))["x"]
    assert x.shape == (1, 3, 4, 6)
    np.testing.assert_array_equal(x, 200)


def test_resize_is_that_of_the_shorter_side(picture):
    assert reader(FREE, resize=2)(picture(PIXELS))["x"].shape == (1, 3, 2, 3)


def test_resize_to_height_and_width_stretches(picture):
    assert reader(FREE, resize=(5, 2))(picture(PIXELS))["x"].shape == (1, 3, 5, 2)


def test_crop_cuts_the_centre_of_what_was_resized(picture):
    x = reader(FREE, resize=4, crop=2)(picture(PIXELS))["x"]
    np.testing.assert_array_equal(x[0], PIXELS.transpose(2, 0, 1)[:, 1:3, 2:4])


def test_an_input_of_free_size_takes_pictures_in_their_own(picture):
    assert reader(FREE)(picture(PIXELS))["x"].shape == (1, 3, 4, 6)


@pytest.mark.parametrize(
    "wanted, options, message",
    [
        pytest.param(NCHW, {"crop": 5}, r"crop = \(5, 5\), but input 'x' is .* must be 4 x 6", id="another crop"),
        pytest.param(FREE, {"resize": 0}, "resize = 0; expected pixels", id="resize to nothing"),
        pytest.param(NCHW, {"layout": "CHW"}, "layout = 'CHW'; expected 'NCHW' or 'NHWC'", id="layout"),
        pytest.param(TensorType("float32", ("N", 5, 4, 7)), {}, "say layout NCHW or NHWC", id="no channel axis"),
        pytest.param(NCHW, {"color": "cmyk"}, "color = 'cmyk'; expected one of 'rgb'", id="colour"),
        pytest.param(NCHW, {"color": "gray"}, "'gray' has 1 channels, but .* with 3", id="gray into three channels"),
        pytest.param(NCHW, {"mean": (1.0, 2.0)}, "mean = 1,2; expected one finite number, or 3", id="two means"),
        pytest.param(NCHW, {"std": (0.0,)}, "std = 0; expected numbers above 0", id="std 0"),
        pytest.param(NCHW, {"mean": (float("nan"),)}, "mean = nan", id="mean NaN"),
        pytest.param(
            NCHW, {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
            "mean is 123.675,116.28,103.53 and std 58.395,57.12,57.375", id="values for pixels up to 1",
        ),
        pytest.param(TensorType("uint8", NCHW.shape), {"mean": (1.0,)}, "takes the pixels as they are", id="bytes"),
        pytest.param(TensorType("float32", ("N", 64)), {}, "takes no images", id="no image"),
        pytest.param(TensorType("int64", NCHW.shape), {}, "float or uint8", id="integers"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(wanted, options, message):
    with pytest.raises(ConfigError, match=message):
        reader(wanted, **options)


def test_models_with_several_inputs_take_no_folder_of_images():
    with pytest.raises(ConfigError, match=r"one input; this one has \['x', 'y'\]"):
        ImageReader.of({"x": NCHW, "y": NCHW}, ImageOptions())


def test_an_unreadable_picture_is_an_error_that_names_it(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(CalibrationError, match=r"broken\.jpg' cannot be read"):
        reader()(tmp_path / "broken.jpg")


def test_a_truncated_picture_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "cut.png"
    pillow.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CalibrationError, match=r"cut\.png' cannot be read"):
        reader()(path)


def test_a_picture_smaller_than_the_crop_is_an_error_that_says_how_large_it_is(picture):
    with pytest.raises(CalibrationError, match=r"is 3 x 4 after resizing, smaller than .* 4 x 6"):
        reader(resize=3)(picture(PIXELS))


def test_a_central_fraction_is_cut_out_and_stretched_to_the_size_of_the_model(picture):
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[2:6, 5:15] = 200  # the central half of each side
    x = reader(central_fraction=0.5)(picture(pixels))["x"]
    assert x.shape == (1, 3, 4, 6)
    assert (x == 200).all()
    assert (reader(central_fraction=1.0)(picture(pixels))["x"] == 200).mean() < 0.5


@pytest.mark.parametrize(
    "wanted, options, message",
    [
        pytest.param(
            NCHW, {"central_fraction": 0.0}, "central_fraction = 0.0; expected a number above 0", id="nothing"
        ),
        pytest.param(NCHW, {"central_fraction": 1.5}, "expected a number above 0 and at most 1", id="too much"),
        pytest.param(NCHW, {"central_fraction": 0.5, "resize": 8}, "exclude each other", id="with resize"),
        pytest.param(FREE, {"central_fraction": 0.5}, "needs a size to stretch pictures to.*; say crop", id="no size"),
    ],
)
def test_a_central_fraction_that_means_nothing_is_refused(wanted, options, message):
    with pytest.raises(ConfigError, match=message):
        reader(wanted, **options)
