"""Weights in a data file beside a model file, named after its content: no model file stands beside data that are not its own.

A model and its data cannot be replaced in one step. But new data with a name of their own disturb nobody, and the model file that
names them replaces the old one in one step.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from jaxq.engine.mapped import forget_pages

DIGITS = 16  # of the hash of the content, hexadecimal
LARGEST_INSIDE = 256  # bytes of a tensor that stays in the model file


def write_external(model: ir.Model, path: Path) -> Path | None:
    """Writes a model with its tensors in a data file beside it, one after the other: none stays in memory for it.

    The tensors of `model` are then those of the file.

    Returns:
      The data file; None where no tensor is large enough to be put there.
    """
    before: list[Any] = []

    def next_tensor(tensor: Any, _: Any) -> None:
        while before:
            forget_pages(before.pop())
        before.append(tensor.raw)

    unnamed = path.with_name("unnamed.data")
    ir.external_data.unload_from_model(
        model, path.parent, unnamed.name, size_threshold_bytes=LARGEST_INSIDE, callback=next_tensor
    )
    digest = functools.partial(hashlib.blake2b, digest_size=DIGITS // 2)
    with unnamed.open("rb") as file:
        named = path.with_name(f"{path.name}.{hashlib.file_digest(file, digest).hexdigest()}.data")
    outside = 0
    for value in initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = moved(value.const_value, named.name)
            outside += 1
    ir.save(model, path)
    if not outside:
        unnamed.unlink()
        return None
    return unnamed.replace(named)


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Every initializer of a model, those of branches and loops too."""
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.initializers.values()


def moved(tensor: ir.ExternalTensor, location: str) -> ir.ExternalTensor:
    """The same tensor in a file of another name."""
    return ir.ExternalTensor(
        location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=tensor.base_dir,
    )


def put_in_place(draft: Path, data: Path | None, target: Path) -> tuple[Path, ...]:
    """Moves a model file, and its data file, to where they belong; whenever that is cut short, a whole model is there.

    The data come first: no other model reads a file of that name. The model file that names them follows. Last, the data that the
    file it has replaced did read are removed, if jaxq has written them for a model of this name.

    Returns:
      The files that were written.
    """
    before = data_files(target)
    written = () if data is None else (data.replace(target.with_name(data.name)),)
    try:
        draft.replace(target)
    except OSError:  # not where it is interrupted: then it may have happened
        for path in set(written) - before:
            path.unlink()
        raise
    for path in before.difference(written):
        with contextlib.suppress(OSError):  # somebody reads it, on a system that minds
            path.unlink()
    return target, *written


def data_file(written: tuple[Path, ...]) -> str | None:
    """The data file among those that were written, for reports."""
    return None if len(written) == 1 else str(written[1])


def data_files(path: Path) -> set[Path]:
    """The data files that a model file reads and that jaxq has written for a model of that name; none if it is not there."""
    ours = re.compile(re.escape(path.name) + rf"\.[0-9a-f]{{{DIGITS}}}\.data")
    beside = {each.name for each in path.parent.iterdir() if ours.fullmatch(each.name)}
    try:
        return {path.with_name(name) for name in beside and beside & locations(path)}
    except Exception:  # what is no model, or a damaged one, names no files
        return set()


def locations(path: Path) -> set[str]:
    """Where the tensors of a model file lie that do not lie in it."""
    model = ir.from_proto(onnx.load(path, load_external_data=False))
    tensors = (value.const_value for value in initializers(model))
    return {os.fspath(each.location) for each in tensors if isinstance(each, ir.ExternalTensor)}


def move_model(path: Path, folder: Path) -> None:
    """Moves a model file with its data into another folder; whenever that is cut short, a whole model is here or there."""
    data = data_files(path)
    for each in data:  # not by a second link: readers of ONNX refuse data that have one
        shutil.copyfile(each, folder / each.name)
    path.rename(folder / path.name)
    for each in data:
        each.unlink()
