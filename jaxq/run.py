"""Runs a configuration file, whichever tool it was written for: jaxq's own format, or POT's."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxq.data import Dataset, open_data
from jaxq.errors import AccuracyError, ConfigError, JaxqWarning
from jaxq.files import check_writable, write_text
from jaxq.model import Model
from jaxq.onnx_export import save
from jaxq.onnx_import import load
from jaxq.pipeline import prepare

if TYPE_CHECKING:
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
      AccuracyError: the accuracy asked for was not reached; the best model is written all the same.
    """
    start = time.perf_counter()
    job, places = read_any(path)
    source = Path(job.model)
    name = job.name or source.stem
    file = None
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        file = Path(output) / f"{name}.onnx"
        check_writable(file)
        if file.resolve() == source.resolve():
            raise ConfigError(f"the result would replace the model itself, {str(source)!r}; name another folder")
    try:
        model = run_job(job, file.with_suffix(".intermediate.onnx") if file else None)
    except AccuracyError as error:
        if file is not None and error.best is not None:
            save(error.best, file)
        raise
    except ConfigError as error:
        place = next((f" {place}:" for word, place in places.items() if str(error).startswith(word)), "")
        raise ConfigError(f"{path}:{place} {error}") from error
    used = int(model.metadata.get("jaxq.calibration_samples", 0))
    wanted = job.quantize.subset_size if job.quantize else None
    if "subset_size" in places and wanted is not None and 0 < used < wanted:
        place = f"{path}: {places['subset_size']} = {wanted}"
        warnings.warn(f"{place}, but the data has {used} samples; all of them are used", JaxqWarning, stacklevel=2)
    report = {
        "config": os.fspath(path),
        "model": str(source),
        "output": None if file is None else str(file),
        "quantized_activations": len(model.encodings.keys() - model.params.keys()),
        "quantized_params": len(model.encodings.keys() & model.params.keys()),
        "seconds": round(time.perf_counter() - start, 3),
        "metadata": dict(model.metadata),
        "job": job.to_dict(),
    }
    if file is not None:
        save(model, file)
        write_text(file.with_suffix(".json"), json.dumps(report, indent=2) + "\n")
    return RunResult(model, file, report)


def read_any(path: str | os.PathLike[str]) -> tuple[Job, dict[str, str]]:
    """The job in a file of any known format, its paths made absolute; and where the file says what is checked later.

    The second maps the first word of a message to the path of the key that it is about. Another format is recognised here.
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
        job, places = job_of(content, where), {"ignored": "quantize.ignored_scope"}
        if "subset_size" in (content.get("quantize") or {}):
            places["subset_size"] = "quantize.subset_size"
    changes: dict[str, Any] = {
        "model": _resolved(job.model, folder),
        "data": job.data.model_copy(update={"source": _resolved(job.data.source, folder)}),
    }
    if isinstance(validation := (job.accuracy or {}).get("validation"), str):
        changes["accuracy"] = {**(job.accuracy or {}), "validation": _resolved(validation, folder)}
    return job.model_copy(update=changes), places


def _resolved(text: str, folder: Path) -> str:
    """A path relative to the folder of the file it stands in. A module of package.module:function may lie there, too."""
    if re.fullmatch(r"[^/\\:]+:\w+", text) and not (folder / text).exists():
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        return text
    return os.path.normpath(folder / text)


def run_job(job: Job, intermediate: Path | None = None) -> Model:
    """The model that a job makes; nothing is written but the intermediate model, where the job asks for it."""
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
        return run_with_accuracy_control(job, model, data)
    prepared = prepare(model, data, job.quantize)
    dump = None if intermediate is None or not job.dump_intermediate_model else partial(save, path=intermediate)
    quantized = prepared.run(watch=dump)
    return quantized.replace(metadata=quantized.metadata | prepared.record(stacklevel=4))


def run_with_accuracy_control(job: Job, model: Model, data: Dataset) -> Model:
    """The model of a job that limits the loss of accuracy."""
    from jaxq.accuracy.front import quantize_with_accuracy_control
    from jaxq.accuracy.section import read_section

    assert job.quantize is not None and job.accuracy is not None, "the job quantizes"  # noqa: PT018
    arguments, source = read_section(job.accuracy)
    options = job.quantize.arguments()
    options["advanced_quantization_parameters"] = options.pop("advanced_parameters")
    labelled = arguments["validation_fn"] or arguments["advanced_accuracy_restorer_parameters"].metrics
    validation = open_data(
        source or job.data.source, model, images=job.data.images, batch_axis=job.data.batch_axis,
        label="label" if labelled else None,
    )  # fmt: skip
    return quantize_with_accuracy_control(model, data, validation, **arguments, **options)
