"""The main job: a float model and calibration data in, a model with encodings out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxq.model import Model
from jaxq.onnx_import import Source
from jaxq.options import (
    AdvancedQuantizationParameters,
    ModelType,
    Preset,
    QuantizeOptions,
    TargetDevice,
)
from jaxq.pipeline import prepare
from jaxq.programs import holding
from jaxq.scope import IgnoredScope


def quantize(
    model: Source,
    calibration_dataset: Iterable[Any],
    *,
    preset: Preset | str | None = None,
    target_device: TargetDevice | str = "onnxruntime",
    subset_size: int | None = 300,
    fast_bias_correction: bool = False,
    model_type: ModelType | str | None = None,
    ignored_scope: IgnoredScope | None = None,
    advanced_parameters: AdvancedQuantizationParameters | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Model:
    """Quantizes a trained model to 8 bits, from samples without labels. The names are nncf's.

    Args:
      model: path, `onnx.ModelProto` or `Model`, in float.
      calibration_dataset: a `Dataset` or any iterable of batches: array, tuple of arrays, or {input name: array}. A batch
        along a free first axis counts as that many samples (another axis, or none: `Dataset(..., batch_axis=...)`).
      preset: "performance" (symmetric activations), "mixed" (asymmetric), "accuracy" (weights too, where the target has that), or
        None: what costs the target nothing more.
      target_device: the runtime that will execute the file, by its name in `jaxq.targets`, or a `TargetDevice`.
      subset_size: the number of samples used, the first ones; None uses all.
      fast_bias_correction: how to correct the biases for the mean error that rounding causes: each layer by itself, for the
        rounding of its weights (True, nncf's default), or all together, each seeing what is left of the errors before it
        (False): a few seconds more, and more accurate. `advanced_parameters` can switch it off.
      model_type: "transformer" keeps additions, normalizations and the like in float; None finds out.
      ignored_scope: what stays in float.
      advanced_parameters: everything else.
      seed: written into the file; no step of this function draws random numbers yet.
      batch_size: samples run at a time, None to choose; changes nothing but, in small matrix products, the last bit of a sum.

    Returns:
      A `Model` whose calls simulate the integers; `jaxq.save` writes it as QDQ ONNX.

    Raises:
      ModelError: the model is already quantized, or has nothing to quantize.
      CalibrationError: no samples, or NaN or infinity in the data or in a tensor.
      InputError: the samples do not fit the model's inputs.
      ConfigError: an option is wrong, the target cannot do what is asked for, or something ignored matches nothing.
    """
    options = QuantizeOptions(
        preset=preset,
        target_device=target_device,
        subset_size=subset_size,
        fast_bias_correction=fast_bias_correction,
        model_type=model_type,
        ignored_scope=IgnoredScope() if ignored_scope is None else ignored_scope,
        advanced_parameters=AdvancedQuantizationParameters() if advanced_parameters is None else advanced_parameters,
        seed=seed,
        batch_size=batch_size,
    )
    with holding():
        prepared = prepare(model, calibration_dataset, options)
        quantized = prepared.run()
    return quantized.replace(metadata=quantized.metadata | prepared.record(quantized, stacklevel=2))


__all__ = ["quantize"]
