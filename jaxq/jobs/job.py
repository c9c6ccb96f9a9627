"""jaxq's own configuration: a job as JSON. Other formats are translated into the same `Job`; `jaxq.jobs.run` does it.

    {"model": "resnet50.onnx", "data": "photos/", "quantize": {"preset": "mixed", "subset_size": 100}}

The keys of `quantize` are the keyword arguments of `jaxq.quantize`. Paths are relative to the file. See docs/config.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic

from jaxq import options as options_module
from jaxq.accuracy.options import AccuracySection
from jaxq.data import ImageOptions
from jaxq.errors import ConfigError, Option, Words, told
from jaxq.files import write_text
from jaxq.jobs.json_text import parse_json, read_json
from jaxq.jobs.validation import validated
from jaxq.options import QuantizeOptions

OWN = Words({})  # the file calls options what `Job` calls them


class Strict(pydantic.BaseModel):
    """A part of a configuration: it never changes, and knows all its keys."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DataOptions(Strict):
    """Where the samples are, and how they are read.

    Attributes:
      source: an .npz or .npy file, a folder of images or of such files, a pattern, a .txt list of files, or
        package.module:function.
      images: how pictures become inputs.
      batch_axis: the axis along which an item of the data holds samples; null: an item is one sample.
      shuffle: draw the samples at random, by `quantize.seed`; otherwise the first ones, of a folder evenly spread ones.
    """

    source: str
    images: ImageOptions | None = None
    batch_axis: int | None = 0
    shuffle: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerwiseTuning:
    """How layers are tuned after quantization, by POT's names; read, and reported as not there yet.

    Attributes:
      num_samples_for_tuning: how many samples.
      batch_size: samples in a step.
      optimizer, loss: by name.
      tuning_iterations: steps for each layer.
      random_seed: of the order of samples.
      use_ranking_subset: tune on the samples that quantization hurts most.
      calibration_indices_pool: how many samples these are drawn from.
      calculate_grads_on_loss_increase_only: leave out layers whose loss does not grow.
      weight_decay: pulls weights towards zero.
    """

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


class Job(Strict):
    """What `jaxq run` does: a model and data in, a quantized file out.

    Attributes:
      schema_: the address of the schema, for editors.
      model: the ONNX file, in float.
      data: the calibration samples: what `jaxq quantize --data` takes, or an object.
      name: the files written are called so; null: as the model.
      quantize: the keyword arguments of `jaxq.quantize`; null leaves the model in float.
      dump_intermediate_model: write the model as it is before its biases are corrected, too.
      accuracy: limits of accuracy; their keys are those of nncf's accuracy control.
      layerwise_tuning: options of fine-tuning the layers after quantization.
    """

    schema_: Annotated[str | None, pydantic.Field(alias="$schema")] = None
    model: str
    data: DataOptions
    name: str | None = None
    quantize: QuantizeOptions | None = QuantizeOptions()
    dump_intermediate_model: bool = False
    accuracy: AccuracySection | None = None
    layerwise_tuning: LayerwiseTuning | None = None

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as plain values for JSON; `read_job` reads it back."""
        found: dict[str, Any] = {
            "model": self.model,
            "data": options_module.plain(self.data.model_dump(exclude_defaults=True)),
        }
        if set(found["data"]) == {"source"}:
            found["data"] = self.data.source
        if self.data.images is not None:
            found["data"]["images"] = options_module.plain(self.data.images)
        found["quantize"] = None if self.quantize is None else self.quantize.to_dict()
        if found["quantize"] == {}:
            del found["quantize"]
        rest = self.model_dump(
            by_alias=True, exclude_defaults=True, exclude={"model", "data", "quantize", "accuracy", "layerwise_tuning"}
        )
        sections = {"accuracy": self.accuracy, "layerwise_tuning": self.layerwise_tuning}
        return found | rest | {key: options_module.plain(each) for key, each in sections.items() if each is not None}


def of_call(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    options: QuantizeOptions | None = None,
    *,
    images: ImageOptions | None = None,
    batch_axis: int | None = 0,
    accuracy: AccuracySection | None = None,
) -> Job:
    """The job that a call of `jaxq.quantize` does, where model and data are files; with limits of accuracy, if there are any."""
    said = None if images == ImageOptions() else images
    source = DataOptions(source=os.fspath(data), images=said, batch_axis=batch_axis)
    return Job(model=os.fspath(model), data=source, quantize=options or QuantizeOptions(), accuracy=accuracy)


def read_job(path: str | os.PathLike[str]) -> Job:
    """The job in a file of jaxq's own format.

    Raises:
      ConfigError: the file is not one; the message gives the path in it and what was expected.
    """
    return job_of(read_json(path), os.fspath(path))


def job_of(content: Any, where: str) -> Job:
    """The job that the content of a file describes; `where` is the file's name, for messages."""
    if isinstance(content, Mapping) and isinstance(content.get("data"), str):
        content = {**content, "data": {"source": content["data"]}}
    if isinstance(content, Mapping) and isinstance(content.get("accuracy"), Mapping):
        with told(OWN, where):
            content = {**content, "accuracy": in_full(content["accuracy"])}
    return validated(Job, content, where)


POT_NAMES = {"maximal_drop": "max_drop", "max_iter_num": "max_num_iterations"}
POT_METRICS = {"accuracy": "top1", "accuracy@top1": "top1", "accuracy@top5": "top5", "mean_iou": "miou"}
WITHOUT_USE = ("annotation_conf_threshold",)  # POT: of the predictions that stand in for labels


def in_full(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `accuracy` by the names of `AccuracySection`; POT's names and metrics, and short forms, are taken too.

    Raises:
      ConfigError: two keys say the same.
    """
    for key, name in POT_NAMES.items():
        if given.get(key) is not None and given.get(name) is not None:
            same = Option(("accuracy", key)), " and ", Option(("accuracy", name))
            raise ConfigError(*same, " are the same; give one of them")
    values = {POT_NAMES.get(key, key): value for key, value in given.items() if value is not None}
    values = {key: value for key, value in values.items() if key not in WITHOUT_USE}
    if isinstance(values.get("repairs"), str):
        values["repairs"] = [values["repairs"]]
    if isinstance(values.get("metrics"), str | Mapping):
        values["metrics"] = [values["metrics"]]
    if isinstance(values.get("metrics"), list):
        values["metrics"] = [_metric(each, bool(values.get("annotation_free"))) for each in values["metrics"]]
    return values


def _metric(given: Any, annotation_free: bool) -> Any:
    """A metric with its name here. What was measured with labels is no baseline without them."""
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping):
        return given
    dropped = ("type", "baseline_value") if annotation_free else ("type",)
    found = {key: value for key, value in given.items() if key not in dropped}
    return (
        found | {"name": POT_METRICS.get(found["name"], found["name"])} if isinstance(found.get("name"), str) else found
    )


def write_job(job: Job, path: str | os.PathLike[str]) -> None:
    """Writes the job as JSON; what has its default is left out. Paths in it become relative to the file where they can."""
    content, folder = job.to_dict(), Path(path).resolve().parent

    def relative(text: str) -> str:
        return os.path.relpath(text, folder) if Path(text).exists() else text

    content["model"] = relative(content["model"])
    if isinstance(content["data"], str):
        content["data"] = relative(content["data"])
    else:
        content["data"]["source"] = relative(content["data"]["source"])
    if "validation" in content.get("accuracy", {}):
        content["accuracy"]["validation"] = relative(content["accuracy"]["validation"])
    write_text(path, json.dumps(content, indent=2) + "\n")


def options_of(settings: Iterable[str]) -> QuantizeOptions:
    """The options that a list of `key=value` stands for; dots in a key lead inside, a value is JSON or else a string.

    E.g. `advanced_parameters.disable_bias_correction=true`, `preset=mixed`.

    Raises:
      ConfigError: see `read_job`.
    """
    content: dict[str, Any] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise ConfigError(f"{setting!r} is no setting; expected key=value")
        try:
            value = parse_json(text, key)
        except ConfigError:
            value = text
        *outer, last = key.split(".")
        place = content
        for step in outer:
            place = place.setdefault(step, {})
        place[last] = value
    return job_of({"model": "", "data": "", "quantize": content}, "settings").quantize or QuantizeOptions()
