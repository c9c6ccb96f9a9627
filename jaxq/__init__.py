"""Post-training quantization of ONNX models, on whatever JAX runs on.

    import jaxq

    model = jaxq.load("model.onnx")
    quantized = jaxq.quantize(model, batches)
    jaxq.save(quantized, "model.int8.onnx")

Names are loaded when they are first used, so that `import jaxq` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxq.version import __version__ as __version__

if TYPE_CHECKING:
    from jaxq.accuracy.front import quantize_with_accuracy_control
    from jaxq.accuracy.options import AdvancedAccuracyRestorerParameters, DropType
    from jaxq.analysis.verify import verify
    from jaxq.compress import BackupMode, CompressWeightsMode, GroupSizeFallbackMode, compress_weights
    from jaxq.data import Dataset
    from jaxq.engine.flax import from_flax, to_flax
    from jaxq.engine.model import Model
    from jaxq.errors import (
        AccuracyError,
        CalibrationError,
        ConfigError,
        DeviceError,
        DynamicShapeError,
        InputError,
        JaxqError,
        JaxqWarning,
        ModelError,
        RuntimeMissingError,
        UnsupportedOpError,
    )
    from jaxq.graph.select import IgnoredScope, Operation, Subgraph
    from jaxq.jobs.run import RunResult, run_config
    from jaxq.numerics.estimators import (
        AggregatorType,
        RangeEstimatorParameters,
        RangeEstimatorParametersSet,
        StatisticsCollectorParameters,
        StatisticsType,
    )
    from jaxq.numerics.quantizer import QuantParams
    from jaxq.onnx_io.load import load
    from jaxq.onnx_io.save import save
    from jaxq.options import (
        AdvancedBiasCorrectionParameters,
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        ModelType,
        Preset,
        QuantizeOptions,
        TargetDevice,
    )
    from jaxq.pipeline import quantize
    from jaxq.placement.schemes import (
        FP8QuantizationParameters,
        FP8Type,
        OverflowFix,
        Override,
        QuantizationParameters,
        QuantizationScheme,
        QuantizerPropagationRule,
    )

_HOME = {
    "AccuracyError": "errors",
    "AdvancedAccuracyRestorerParameters": "accuracy.options",
    "AdvancedBiasCorrectionParameters": "options",
    "AdvancedQuantizationParameters": "options",
    "AdvancedSmoothQuantParameters": "options",
    "AggregatorType": "numerics.estimators",
    "BackupMode": "compress",
    "CalibrationError": "errors",
    "CompressWeightsMode": "compress",
    "ConfigError": "errors",
    "Dataset": "data",
    "DeviceError": "errors",
    "DropType": "accuracy.options",
    "DynamicShapeError": "errors",
    "FP8QuantizationParameters": "placement.schemes",
    "FP8Type": "placement.schemes",
    "GroupSizeFallbackMode": "compress",
    "IgnoredScope": "graph.select",
    "InputError": "errors",
    "JaxqError": "errors",
    "JaxqWarning": "errors",
    "Model": "engine.model",
    "ModelError": "errors",
    "ModelType": "options",
    "Operation": "graph.select",
    "OverflowFix": "placement.schemes",
    "Override": "placement.schemes",
    "Preset": "options",
    "QuantParams": "numerics.quantizer",
    "QuantizationParameters": "placement.schemes",
    "QuantizationScheme": "placement.schemes",
    "QuantizeOptions": "options",
    "QuantizerPropagationRule": "placement.schemes",
    "RangeEstimatorParameters": "numerics.estimators",
    "RangeEstimatorParametersSet": "numerics.estimators",
    "RunResult": "jobs.run",
    "RuntimeMissingError": "errors",
    "StatisticsCollectorParameters": "numerics.estimators",
    "StatisticsType": "numerics.estimators",
    "Subgraph": "graph.select",
    "TargetDevice": "options",
    "UnsupportedOpError": "errors",
    "compress_weights": "compress",
    "from_flax": "engine.flax",
    "load": "onnx_io.load",
    "quantize": "pipeline",
    "quantize_with_accuracy_control": "accuracy.front",
    "run_config": "jobs.run",
    "save": "onnx_io.save",
    "to_flax": "engine.flax",
    "verify": "analysis.verify",
}

__all__ = [
    "AccuracyError",
    "AdvancedAccuracyRestorerParameters",
    "AdvancedBiasCorrectionParameters",
    "AdvancedQuantizationParameters",
    "AdvancedSmoothQuantParameters",
    "AggregatorType",
    "BackupMode",
    "CalibrationError",
    "CompressWeightsMode",
    "ConfigError",
    "Dataset",
    "DeviceError",
    "DropType",
    "DynamicShapeError",
    "FP8QuantizationParameters",
    "FP8Type",
    "GroupSizeFallbackMode",
    "IgnoredScope",
    "InputError",
    "JaxqError",
    "JaxqWarning",
    "Model",
    "ModelError",
    "ModelType",
    "Operation",
    "OverflowFix",
    "Override",
    "Preset",
    "QuantParams",
    "QuantizationParameters",
    "QuantizationScheme",
    "QuantizeOptions",
    "QuantizerPropagationRule",
    "RangeEstimatorParameters",
    "RangeEstimatorParametersSet",
    "RunResult",
    "RuntimeMissingError",
    "StatisticsCollectorParameters",
    "StatisticsType",
    "Subgraph",
    "TargetDevice",
    "UnsupportedOpError",
    "compress_weights",
    "from_flax",
    "load",
    "quantize",
    "quantize_with_accuracy_control",
    "run_config",
    "save",
    "to_flax",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxq' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jaxq.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
