"""The public names, for type checkers and editors, and for `__init__.py`, which loads each when it is first used."""

from .accuracy.front import quantize_with_accuracy_control as quantize_with_accuracy_control
from .accuracy.options import (
    AdvancedAccuracyRestorerParameters as AdvancedAccuracyRestorerParameters,
)
from .analysis.validation import DropType as DropType
from .analysis.verify import verify as verify
from .compress import (
    BackupMode as BackupMode,
)
from .compress import (
    CompressWeightsMode as CompressWeightsMode,
)
from .compress import (
    GroupSizeFallbackMode as GroupSizeFallbackMode,
)
from .compress import (
    compress_weights as compress_weights,
)
from .data import Dataset as Dataset
from .engine.model import Model as Model
from .errors import (
    AccuracyError as AccuracyError,
)
from .errors import (
    CalibrationError as CalibrationError,
)
from .errors import (
    ConfigError as ConfigError,
)
from .errors import (
    DeviceError as DeviceError,
)
from .errors import (
    DynamicShapeError as DynamicShapeError,
)
from .errors import (
    InputError as InputError,
)
from .errors import (
    JaxqError as JaxqError,
)
from .errors import (
    JaxqWarning as JaxqWarning,
)
from .errors import (
    ModelError as ModelError,
)
from .errors import (
    RuntimeMissingError as RuntimeMissingError,
)
from .errors import (
    UnsupportedOpError as UnsupportedOpError,
)
from .graph.select import (
    IgnoredScope as IgnoredScope,
)
from .graph.select import (
    Operation as Operation,
)
from .graph.select import (
    Subgraph as Subgraph,
)
from .jobs.run import (
    RunResult as RunResult,
)
from .jobs.run import (
    run_config as run_config,
)
from .numerics.estimators import (
    AggregatorType as AggregatorType,
)
from .numerics.estimators import (
    RangeEstimatorParameters as RangeEstimatorParameters,
)
from .numerics.estimators import (
    RangeEstimatorParametersSet as RangeEstimatorParametersSet,
)
from .numerics.estimators import (
    StatisticsCollectorParameters as StatisticsCollectorParameters,
)
from .numerics.estimators import (
    StatisticsType as StatisticsType,
)
from .numerics.quantizer import QuantParams as QuantParams
from .onnx_io.flax import (
    from_flax as from_flax,
)
from .onnx_io.flax import (
    to_flax as to_flax,
)
from .onnx_io.load import load as load
from .onnx_io.save import save as save
from .options import (
    AdvancedBiasCorrectionParameters as AdvancedBiasCorrectionParameters,
)
from .options import (
    AdvancedQuantizationParameters as AdvancedQuantizationParameters,
)
from .options import (
    AdvancedSmoothQuantParameters as AdvancedSmoothQuantParameters,
)
from .options import (
    ModelType as ModelType,
)
from .options import (
    Preset as Preset,
)
from .options import (
    QuantizeOptions as QuantizeOptions,
)
from .options import (
    TargetDevice as TargetDevice,
)
from .pipeline import quantize as quantize
from .placement.schemes import (
    FP8QuantizationParameters as FP8QuantizationParameters,
)
from .placement.schemes import (
    FP8Type as FP8Type,
)
from .placement.schemes import (
    OverflowFix as OverflowFix,
)
from .placement.schemes import (
    Override as Override,
)
from .placement.schemes import (
    QuantizationParameters as QuantizationParameters,
)
from .placement.schemes import (
    QuantizationScheme as QuantizationScheme,
)
from .placement.schemes import (
    QuantizerPropagationRule as QuantizerPropagationRule,
)

__version__: str
