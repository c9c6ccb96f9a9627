"""The keys of POT's configuration files (OpenVINO's Post-training Optimization Tool, 2023.0), as they are documented.

`pot_job.py` says what they mean here. Unknown keys are refused, as POT does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """An object of the file: it knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


class ModelSection(Section):
    """`model`: what is quantized."""

    model_name: str | None = None
    model: str | None = None
    weights: str | None = None
    cascade: list[dict[str, Any]] | None = None
    output_names: list[str] | None = None


class PotMetric(Section):
    """One of `engine.metrics` or of `metrics`: a name, and its value for the float model where that is known."""

    name: str | None = None
    type: str | None = None
    baseline_value: float | None = None


class Engine(Section):
    """`engine`: where the data come from. The keys from `mean` on are jaxq's: an ONNX file has no preprocessing of its own."""

    type: Literal["simplified", "accuracy_checker", "data_free"] | None = None
    data_source: str | None = None
    layout: str | None = None
    central_fraction: float | None = None
    metrics: list[PotMetric] | None = None
    config: str | None = None
    name: str | None = None
    launchers: list[Any] | None = None
    datasets: list[Any] | None = None
    device: str | None = None
    stat_requests_number: int | None = None
    eval_requests_number: int | None = None
    batch_dim: int | None = None
    mean: list[float] | float | None = None
    std: list[float] | float | None = None
    color: Literal["rgb", "bgr", "gray"] | None = None


class Bound(Section):
    """One end of a range."""

    type: Literal["min", "max", "abs_max", "quantile", "abs_quantile", "mean"] | None = None
    aggregator: (
        Literal["mean", "max", "min", "median", "mean_no_outliers", "median_no_outliers", "hl_estimator"] | None
    ) = None
    outlier_prob: float | None = None
    clipping_value: float | None = None
    granularity: Literal["pertensor", "perchannel"] | None = None


class RangeEstimator(Section):
    """How a range follows from what was seen of a tensor. A preset of another name is one of jaxq's estimators."""

    preset: str | None = None
    min: Bound | None = None
    max: Bound | None = None


class Tensors(Section):
    """`weights` or `activations`."""

    bits: int | None = None
    mode: Literal["symmetric", "asymmetric"] | None = None
    level_low: int | None = None
    level_high: int | None = None
    granularity: Literal["pertensor", "perchannel"] | None = None
    range_estimator: RangeEstimator | None = None


class IgnoredOperation(Section):
    """Nodes of a type whose attributes have these values."""

    type: str
    attributes: dict[str, Any] | None = None


class Ignored(Section):
    """What stays in float."""

    skip_model: bool = False
    scope: list[str | list[str]] = []
    operations: list[IgnoredOperation] = []


class Common(Section):
    """Keys that POT takes in `compression`, and whose documentation lists them among the parameters."""

    target_device: str | None = None
    model_type: Annotated[str | None, Field(validation_alias=AliasChoices("model_type", "model type"))] = None
    inplace_statistics: bool | None = None
    dump_intermediate_model: bool | None = None


class TuningParams(Section):
    """The options of `use_layerwise_tuning`."""

    num_samples_for_tuning: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    loss: str | None = None
    tuning_iterations: int | None = None
    random_seed: int | None = None
    use_ranking_subset: bool | None = None
    calibration_indices_pool: int | None = None
    calculate_grads_on_loss_increase_only: bool | None = None
    weight_decay: float | None = None


class DefaultParams(Common, TuningParams):
    """The parameters of DefaultQuantization."""

    preset: Literal["performance", "mixed", "accuracy", "symmetric", "asymmetric"] = "performance"
    stat_subset_size: int | None = None
    stat_batch_size: int | None = None
    shuffle_data: bool = False
    seed: int = 0
    use_fast_bias: bool = True
    threshold: float | None = None
    apply_for_all_nodes: bool = False
    saturation_fix: Literal["no", "first_layer", "all"] = "first_layer"
    range_estimator: RangeEstimator | None = None
    ignored: Ignored = Ignored()
    weights: Tensors = Tensors()
    activations: Tensors = Tensors()
    use_layerwise_tuning: bool = False


class AccuracyParams(DefaultParams):
    """The parameters of AccuracyAwareQuantization: those of the default one, and those of the search."""

    ranking_subset_size: int | None = None
    max_iter_num: int | None = None
    maximal_drop: float = 0.01
    drop_type: Literal["absolute", "relative"] = "absolute"
    use_prev_if_drop_increase: bool = True
    base_algorithm: str = "DefaultQuantization"
    convert_to_mixed_preset: bool = False
    metrics: list[PotMetric] | None = None
    metric_subset_ratio: float = 0.5
    tune_hyperparams: bool = False
    annotation_free: bool = False
    annotation_conf_threshold: float = 0.6
    # jaxq's own, for the loop that POT runs: search "pot" with ranking "exact"
    search: Literal["bisect", "pot"] = "bisect"
    ranking: Literal["alone", "gradient", "exact"] = "alone"


class DefaultAlgorithm(Section):
    """DefaultQuantization."""

    name: Literal["DefaultQuantization"]
    params: DefaultParams = DefaultParams()


class AccuracyAlgorithm(Section):
    """AccuracyAwareQuantization."""

    name: Literal["AccuracyAwareQuantization"]
    params: AccuracyParams = AccuracyParams()


class Compression(Common):
    """`compression`: the algorithm; there is one."""

    algorithms: list[Annotated[DefaultAlgorithm | AccuracyAlgorithm, Field(discriminator="name")]]


class PotFile(Section):
    """A whole file."""

    model: ModelSection
    engine: Engine
    compression: Compression
