"""Runs a configuration file, whichever tool it was written for: jaxq's own format, or POT's."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxq.data import Dataset, open_data
from jaxq.errors import AccuracyError, ConfigError, JaxqError, JaxqWarning
from jaxq.external_data import data_file
from jaxq.files import check_writable, withdraw, write_text
from jaxq.functions import named_function, names_function
from jaxq.model import Model
from jaxq.onnx_export import save
from jaxq.onnx_import import load
from jaxq.pipeline import prepare
from jaxq.summary import fates_of

if TYPE_CHECKING:
    from jaxq.accuracy.report import AccuracyReport
    from jaxq.config import Job


@dataclass(frozen=True)
class RunResult:
    """What came out of a configuration file.

    Attributes:
      model: the quantized model.
      path: the ONNX file that was written; None where none was asked for.
      report: what was done, as plain values; written beside the file.
    """

    model: Model
    path: Path | None
    report: dict[str, Any]


def run_config(path: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> RunResult:
    """Does what a configuration file says; its format (jaxq's own, or that of POT) is recognised.

    Args:
      path: the JSON file, in which comments and trailing commas may stand. Paths in it are relative to its folder.
      output: a folder, made if need be, for `<name>.onnx` and `<name>.json`; None writes nothing.

    Raises:
      ConfigError: the file is wrong; the message gives the path in it, what was expected and the nearest valid key.
      ModelError, CalibrationError, InputError: as `jaxq.quantize`.
      AccuracyError: the accuracy asked for was not reached; the best model and the report are written all the same.
    """
    result, missed = run_file(path, output)
    if missed is not None:
        raise missed
    return result


def run_file(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    on_step: Callable[[AccuracyReport], None] | None = None,
) -> tuple[RunResult, AccuracyError | None]:
    """`run_config`, where missing the accuracy asked for is a result too: that of the best model, and the error.

    Args:
      on_step: gets the report of a search for accuracy after every step.
    """
    start = time.perf_counter()
    job, places = read_any(path)
    file = _output_file(job, output)
    folder = search_folder(job, file)
    search: AccuracyReport | None = None
    missed = None

    def follow(report: AccuracyReport) -> None:
        nonlocal search
        search = report
        if on_step is not None:
            on_step(report)

    try:
        model = run_job(job, file, follow)
    except AccuracyError as error:
        if error.best is None:
            raise
        model, missed = error.best, error
    except KeyboardInterrupt:
        if search is not None and search.steps and folder is not None and file is not None:
            from jaxq.accuracy.store import copy_best

            copy_best(folder, file, file.with_suffix(".json"))
        raise
    except JaxqError as error:
        place = _place(str(error), job, places)
        if place or isinstance(error, ConfigError):
            error.args = (f"{path}: {place}{error}",)
        raise
    used = int(model.metadata.get("jaxq.calibration_samples", 0))
    wanted = job.quantize.subset_size if job.quantize else None
    if "subset_size" in places and wanted is not None and 0 < used < wanted:
        place = f"{path}: {places['subset_size']} = {wanted}"
        warnings.warn(f"{place}, but the data has {used} samples; all of them are used", JaxqWarning, stacklevel=3)
    report = {
        "config": os.fspath(path),
        "model": job.model,
        "output": None if file is None else str(file),
        "data_file": None,
        "quantized_activations": len(model.encodings.keys() - model.params.keys()),
        "quantized_params": len(model.encodings.keys() & model.params.keys()),
        "seconds": round(time.perf_counter() - start, 3),
        "metadata": dict(model.metadata),
        "fates": fates_of(model),
        "job": job.to_dict(),
    }
    if search is not None:
        report["accuracy"] = search.to_dict()
    if file is not None:
        withdraw(file.with_suffix(".json"))
        report["data_file"] = data_file(save(model, file))
        write_text(file.with_suffix(".json"), json.dumps(report, indent=2) + "\n")
        if missed is None and folder == own_folder(file):
            from jaxq.accuracy.store import remove

            remove(folder)
    return RunResult(model, file, report), missed


def _output_file(job: Job, output: str | os.PathLike[str] | None) -> Path | None:
    """The ONNX file to write in the folder, which is made."""
    if output is None:
        return None
    source = Path(job.model)
    Path(output).mkdir(parents=True, exist_ok=True)
    file = Path(output) / f"{job.name or source.stem}.onnx"
    check_writable(file)
    if file.resolve() == source.resolve():
        raise ConfigError(f"the result would replace the model itself, {str(source)!r}; name another folder")
    return file


def _place(message: str, job: Job, places: Mapping[str, str]) -> str:
    """What stands in front of a message: the path in the file that it is about, or "" where that is not known."""
    files = {"model": job.model, "data": job.data.source, "validation": (job.accuracy or {}).get("validation")}
    found = [key for key, file in files.items() if key in places and file and repr(file) in message]  # the one to blame
    found += ["data"] if message.startswith(ABOUT_DATA) else []
    found += [words for words in places.keys() - files.keys() if message.startswith(words)]
    place = places[found[0]] if found else ""
    return f"{place}: " if place and not place.endswith(".") else place


# First words of messages about calibration data that do not name their file.
ABOUT_DATA = ("calibration sample", "the calibration data")

# First words of a message -> the path in jaxq's own format that it is about; one that ends in a dot goes on in the message.
PLACES = {
    "ignored name": "quantize.ignored_scope.names",
    "ignored pattern": "quantize.ignored_scope.patterns",
    "ignored type": "quantize.ignored_scope.types",
    "ignored subgraph": "quantize.ignored_scope.subgraphs",
    "ignored operation": "quantize.ignored_scope.operations",
    "overrides": "quantize.advanced_parameters.",
    "model": "model",
    "data": "data.source",
    "validation": "accuracy.validation",
}


def read_any(path: str | os.PathLike[str]) -> tuple[Job, dict[str, str]]:
    """The job in a file of any known format, its paths made absolute; and where the file says what is checked later.

    The second maps the first words of a message to the path that it is about. Another format is recognised here.
    """
    from jaxq.config import job_of
    from jaxq.formats.json_text import read_json
    from jaxq.formats.pot_job import is_pot, job_of_pot

    where, content = os.fspath(path), read_json(path)
    folder = Path(path).resolve().parent
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected an object in braces, not {type(content).__name__}")
    if is_pot(content):
        job, places = job_of_pot(content, where)
    else:
        job, places = job_of(content, where), dict(PLACES)
        if "subset_size" in (content.get("quantize") or {}):
            places["subset_size"] = "quantize.subset_size"
    changes: dict[str, Any] = {
        "model": _resolved(job.model, folder, f"{where}: {places['model']}"),
        "data": job.data.model_copy(
            update={"source": _resolved(job.data.source, folder, f"{where}: {places['data']}")}
        ),
    }
    accuracy = dict(job.accuracy or {})
    for key in ("validation", "intermediate_model_dir"):
        if isinstance(accuracy.get(key), str):
            changes["accuracy"] = accuracy = {
                **accuracy,
                key: _resolved(accuracy[key], folder, f"{where}: accuracy.{key}"),
            }
    return job.model_copy(update=changes), places


def _resolved(text: str, folder: Path, place: str) -> str:
    """A path relative to the folder of the file it stands in. A module of package.module:function may lie there, too."""
    if not names_function(text) or (folder / text).exists():
        return os.path.normpath(folder / text)
    try:
        named_function(text, folder)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    return text


def run_job(job: Job, file: Path | None = None, on_step: Callable[[AccuracyReport], None] | None = None) -> Model:
    """The model that a job makes. Beside `file` are written the intermediate model, if asked for, and the state of a search."""
    model = load(job.model)
    if job.quantize is None:
        warnings.warn(f"{job.model}: the configuration leaves the whole model in float", JaxqWarning, stacklevel=3)
        return model
    if job.layerwise_tuning is not None:
        warnings.warn(
            "layer-wise tuning is asked for, which this version of jaxq does not have yet; the model is quantized without it",
            JaxqWarning,
            stacklevel=3,
        )
    limit, seed = job.quantize.subset_size, job.quantize.seed if job.data.shuffle else None
    data = open_data(
        job.data.source, model, limit=limit, images=job.data.images, batch_axis=job.data.batch_axis, seed=seed
    )
    if job.accuracy is not None:
        return run_with_accuracy_control(job, model, data, file, on_step)
    prepared = prepare(model, data, job.quantize)
    dump: Callable[[Model], object] | None = (
        partial(save, path=file.with_suffix(".intermediate.onnx"))
        if file is not None and job.dump_intermediate_model
        else None
    )
    quantized = prepared.run(watch=dump)
    return quantized.replace(metadata=quantized.metadata | prepared.record(quantized, stacklevel=4))


def run_with_accuracy_control(
    job: Job,
    model: Model,
    data: Dataset,
    file: Path | None = None,
    on_step: Callable[[AccuracyReport], None] | None = None,
) -> Model:
    """The model of a job that limits the loss of accuracy; the same job goes on from the state in its folder."""
    from jaxq.accuracy.front import quantize_with_accuracy_control
    from jaxq.accuracy.options import read_section

    assert job.quantize is not None and job.accuracy is not None, "the job quantizes"  # noqa: PT018
    limits = read_section(job.accuracy)
    options = job.quantize.arguments()
    options["advanced_quantization_parameters"] = options.pop("advanced_parameters")
    validation = open_data(
        limits.validation or job.data.source, model, images=job.data.images, batch_axis=job.data.batch_axis,
        label="label" if limits.labelled else None,
    )  # fmt: skip
    return quantize_with_accuracy_control(
        model,
        data,
        validation,
        limits.metric,
        max_drop=limits.max_drop,
        drop_type=limits.drop_type,
        **options,
        advanced_accuracy_restorer_parameters=replace(
            limits.parameters, intermediate_model_dir=search_folder(job, file)
        ),
        on_step=on_step,
    )


def search_folder(job: Job, file: Path | None) -> Path | None:
    """Where the state of a search is kept, if there is one: in the folder that the job names, else beside the file."""
    if job.accuracy is None:
        return None
    named = job.accuracy.get("intermediate_model_dir")
    return Path(named) if named else None if file is None else own_folder(file)


def own_folder(file: Path) -> Path:
    """The folder of a search that needs none of its own once its result is written."""
    return file.with_name(f"{file.name}.search")
