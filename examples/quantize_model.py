"""The main job in Python: calibrate a trained network, write it for ONNX Runtime, and check what was written.

python examples/quantize_model.py
"""

import tempfile
from pathlib import Path

import numpy as np

import jaxq
from jaxq import demo


def main() -> None:
    folder = Path(demo.__file__).parent  # the model of handwritten digits that comes with jaxq
    with np.load(folder / "digits.npz") as file:
        images = file["calibration_image"].astype(np.float32) / 16  # 100 pictures, without labels
    data = jaxq.Dataset(images, lambda image: image[None])

    quantized = jaxq.quantize(
        folder / "digits.onnx", data, preset="performance", ignored_scope=jaxq.IgnoredScope(types=["Gemm"])
    )
    for name, params in list(quantized.encodings.items())[:4]:
        print(f"{name}: scale {np.ravel(params.scale)[0]:.5f}, zero point {np.ravel(params.zero_point)[0]}")

    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "digits.int8.onnx"
        jaxq.save(quantized, path)
        print(jaxq.verify(path, data, float_model=folder / "digits.onnx").table())


if __name__ == "__main__":
    main()
