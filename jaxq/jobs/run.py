"""Runs a configuration file, whichever tool it was written for: jaxq's own format, or POT's."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxq.analysis.inspect import fates_of
from jaxq.analysis.metrics import find_metric
from jaxq.data import Dataset, open_data
from jaxq.data.functions import named_function, names_function
from jaxq.engine.model import Model
from jaxq.errors import (
    AccuracyError,
    ConfigError,
    JaxqError,
    JaxqWarning,
    Option,
    OptionPath,
    Words,
    about,
    inside,
    told,
    worded,
)
from jaxq.files import check_writable, withdraw, write_text
from jaxq.onnx_io.external_data import data_file
from jaxq.onnx_io.load import load
from jaxq.onnx_io.save import save
from jaxq.options import QuantizeOptions
from jaxq.pipeline import prepare

if TYPE_CHECKING:
    from jaxq.accuracy.options import AccuracySection
    from jaxq.accuracy.report import AccuracyReport
    from jaxq.jobs.job import Job


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
    job, written = read_any(path)
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
        error.say(lambda option: written.words(call_words(job)(option)))
        if error.path or isinstance(error, ConfigError):
            error.args = (f"{path}: {error.placed()}",)
        raise
    used = int(model.metadata.get("jaxq.calibration_samples", 0))
    wanted = job.quantize.subset_size if job.quantize else None
    if written.counts and wanted is not None and 0 < used < wanted:
        place = f"{path}: {written.words(Option(('quantize', 'subset_size'), wanted))}"
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


# An argument of a call -> where a job says it.
CALL = Words(
    {(each.name,): ("quantize", each.name) for each in fields(QuantizeOptions)}
    | {("advanced_quantization_parameters",): ("quantize", "advanced_parameters")}
    | {("calibration_dataset",): ("data", "source"), ("images",): ("data", "images"), ("batch_axis",): ("data", "batch_axis")}
    | {(each,): ("accuracy", each) for each in ("max_drop", "drop_type", "metric")}
    | {("validation_dataset",): ("accuracy", "validation"), ("advanced_accuracy_restorer_parameters",): ("accuracy",)}
)  # fmt: skip


def call_words(job: Job) -> Words:
    """`CALL`, where the data of validation are those of calibration if the job names no others."""
    if job.accuracy is None or job.accuracy.validation is not None:
        return CALL
    return replace(CALL, starts={**CALL.starts, ("validation_dataset",): ("data", "source")})


class Written(NamedTuple):
    """How a file says a job.

    Attributes:
      words: what it calls the options of a job.
      counts: whether it says how many samples to take.
    """

    words: Words
    counts: bool


def read_any(path: str | os.PathLike[str]) -> tuple[Job, Written]:
    """The job in a file, with absolute paths, and how the file says it; the format is recognised here.

    Raises:
      ConfigError: the file is wrong; the message gives the path in it, what was expected and the nearest valid key.
    """
    from jaxq.jobs.job import OWN, job_of
    from jaxq.jobs.json_text import read_json
    from jaxq.jobs.pot_job import is_pot, job_of_pot

    where, content = os.fspath(path), read_json(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected an object in braces, not {type(content).__name__}")
    pot = is_pot(content)
    job, words = job_of_pot(content, where) if pot else (job_of(content, where), OWN)
    quantize = content.get("quantize") or {}
    counts = "subset_size" in quantize or (pot and job.quantize is not None and job.quantize.subset_size is not None)
    with told(words, where):
        return _located(job, Path(path).resolve().parent), Written(words, counts)


def _located(job: Job, folder: Path) -> Job:
    """The job with paths that do not depend on the current folder."""
    with inside("data", "source"):
        changes: dict[str, Any] = {"data": job.data.model_copy(update={"source": _resolved(job.data.source, folder)})}
    if job.accuracy is not None:
        _check_metrics(job.accuracy, folder)
        paths: dict[str, Any] = {}
        for key in ("validation", "intermediate_model_dir"):
            if isinstance(value := getattr(job.accuracy, key), str):
                with inside("accuracy", key):
                    paths[key] = _resolved(value, folder)
        changes["accuracy"] = replace(job.accuracy, **paths)
    return job.model_copy(update={"model": os.path.normpath(folder / job.model), **changes})


def _check_metrics(accuracy: AccuracySection, folder: Path) -> None:
    """Refuses metrics that there are not; those of package.module:function may lie in the folder."""
    names: list[tuple[OptionPath, str]] = [] if accuracy.metric is None else [(("metric",), accuracy.metric)]
    names += [(("metrics", number, "name"), each.name) for number, each in enumerate(accuracy.metrics)]
    for path, name in names:
        with inside("accuracy"), worded(Words({("metric",): path})):
            if names_function(name):
                with inside("metric"):
                    named_function(name, folder)
            find_metric(name)


def _resolved(text: str, folder: Path) -> str:
    """A path relative to the folder of the file it stands in. A module of package.module:function may lie there, too."""
    if not names_function(text) or (folder / text).exists():
        return os.path.normpath(folder / text)
    named_function(text, folder)
    return text


def run_job(job: Job, file: Path | None = None, on_step: Callable[[AccuracyReport], None] | None = None) -> Model:
    """The model that a job makes. Beside `file` are written the intermediate model, if asked for, and the state of a search."""
    with about("model", kinds=(JaxqError,)):
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
        job.data.source,
        model,
        limit=limit,
        images=job.data.images,
        batch_axis=job.data.batch_axis,
        seed=seed,
        place=("calibration_dataset",),
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

    assert job.quantize is not None and job.accuracy is not None, "the job quantizes"  # noqa: PT018
    arguments, source = job.accuracy.arguments(), job.accuracy.validation
    options = job.quantize.arguments()
    options["advanced_quantization_parameters"] = options.pop("advanced_parameters")
    advanced = arguments.pop("advanced_accuracy_restorer_parameters")
    labelled = (arguments["validation_fn"] or advanced.metrics) and not advanced.annotation_free
    validation = open_data(
        source or job.data.source, model, images=job.data.images, batch_axis=job.data.batch_axis,
        label="label" if labelled else None,
        place=("validation_dataset",) if source else ("calibration_dataset",),
    )  # fmt: skip
    return quantize_with_accuracy_control(
        model,
        data,
        validation,
        **arguments,
        **options,
        advanced_accuracy_restorer_parameters=replace(advanced, intermediate_model_dir=search_folder(job, file)),
        on_step=on_step,
    )


def search_folder(job: Job, file: Path | None) -> Path | None:
    """Where the state of a search is kept, if there is one: in the folder that the job names, else beside the file."""
    if job.accuracy is None:
        return None
    named = job.accuracy.intermediate_model_dir
    return Path(named) if named else None if file is None else own_folder(file)


def own_folder(file: Path) -> Path:
    """The folder of a search that needs none of its own once its result is written."""
    return file.with_name(f"{file.name}.search")
