"""`jaxq compress`: a model in, a file with the weights of its matrix products in 8 or 4 bits out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxq.cli.options import (
    WORDS,
    BatchAxis,
    BatchSize,
    Color,
    Crop,
    Device,
    Ignore,
    IgnorePattern,
    IgnoreType,
    JsonPath,
    Layout,
    Mean,
    ModelPath,
    OptionalData,
    Output,
    Quiet,
    Resize,
    Std,
    SubsetSize,
    Verbose,
    ignored_scope,
    reading,
)
from jaxq.cli.session import bytes_of, check_outputs, session, write_json, written_files
from jaxq.errors import ConfigError, told

if TYPE_CHECKING:
    from jaxq.engine.model import Model

Mode = Annotated[
    Literal["int8_asym", "int8_sym", "int4_asym", "int4_sym"],
    typer.Option(
        metavar="int8_asym|int8_sym|int4_asym|int4_sym",
        help="Bits, with zero points or without; 8 bits with one scale for each channel, 4 bits in groups.",
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        metavar="COUNT",
        help="4 bits: input channels that share a scale; -1 takes all.",
        show_default="128",
    ),
]
GroupSizeFallback = Annotated[
    Literal["adjust", "ignore", "error"],
    typer.Option(
        metavar="adjust|ignore|error",
        help="What becomes of a layer that does not divide into groups: smaller groups, the backup mode, or an error.",
    ),
]
AllLayers = Annotated[
    bool, typer.Option("--all-layers", help="4 bits for embeddings and the last matrix product, too.")
]
BackupMode = Annotated[
    Literal["int8_asym", "int8_sym", "none"],
    typer.Option(metavar="int8_asym|int8_sym|none", help="What layers without 4 bits get; none: they stay in float."),
]
Ratio = Annotated[
    float, typer.Option(metavar="SHARE", help="The share of the weights in 4 bits; sensitive layers come last.")
]
Gptq = Annotated[bool, typer.Option("--gptq", help="Round by GPTQ instead of to nearest; needs --data.")]
MatMulNBits = Annotated[
    bool,
    typer.Option("--matmul-nbits", help="Write com.microsoft.MatMulNBits instead of DequantizeLinear before MatMul."),
]

ROUNDED = "ONNX Runtime rounds the inputs of these products to 8 bits; session.qdq_matmulnbits_accuracy_level = 1 keeps floats"


@told(WORDS)
def compress(
    model: ModelPath,
    output: Output,
    mode: Mode = "int8_asym",
    group_size: GroupSize = None,
    group_size_fallback: GroupSizeFallback = "adjust",
    all_layers: AllLayers = False,
    backup_mode: BackupMode = "int8_asym",
    ratio: Ratio = 1.0,
    data: OptionalData = None,
    subset_size: SubsetSize = 128,
    gptq: Gptq = False,
    matmul_nbits: MatMulNBits = False,
    ignore: Ignore = None,
    ignore_pattern: IgnorePattern = None,
    ignore_type: IgnoreType = None,
    batch_size: BatchSize = None,
    device: Device = None,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    color: Color = None,
    batch_axis: BatchAxis = "0",
    json_path: JsonPath = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Store the weights of matrix products and embeddings in 8 or 4 bits.

    Activations stay in float in the file; ONNX Runtime's merged kernel rounds them to 8 bits, unless the session's entry
    session.qdq_matmulnbits_accuracy_level is 1. It needs no data; with samples, --gptq and --ratio look at them.
    """
    check_outputs({"-o": output, "--json": json_path}, {"MODEL": model, "--data": data})
    if gptq and data is None:
        raise ConfigError("--gptq looks at the inputs of each layer; give samples with --data")
    with session(device=device, quiet=quiet, verbose=verbose):
        from jaxq.compress import compress_weights
        from jaxq.data import open_data
        from jaxq.files import withdraw
        from jaxq.onnx_io.external_data import data_file
        from jaxq.onnx_io.load import load
        from jaxq.onnx_io.save import save

        started = time.perf_counter()
        loaded, samples = load(model), None
        if data is not None:
            how = reading(resize, crop, mean, std, layout, color, batch_axis)
            samples = open_data(data, loaded, limit=subset_size, place=("dataset",), **how)
        compressed = compress_weights(
            loaded,
            mode=mode,
            ratio=ratio,
            group_size=group_size,
            ignored_scope=ignored_scope(ignore, ignore_pattern, ignore_type),
            all_layers=all_layers,
            dataset=samples,
            subset_size=subset_size,
            gptq=gptq,
            backup_mode=backup_mode,
            group_size_fallback_mode=group_size_fallback,
            batch_size=batch_size,
        )
        withdraw(None if json_path == "-" else json_path)
        written = save(compressed, output, matmul_nbits=matmul_nbits)
        seconds = time.perf_counter() - started
    result = described(model, loaded, output, compressed, seconds) | {"data_file": data_file(written)}
    write_json(result, json_path)
    if not quiet and json_path != "-":
        sizes = "{float_bytes:,} -> {compressed_bytes:,} bytes, in {seconds:.1f} s".format_map(result)
        print(f"{written_files(result)}: {sizes}")
        print("{weights_in_4_bits} weights in 4 bits, {weights_in_8_bits} in 8".format_map(result), end="")
        print(f", {len(result['left_in_float'])} in float" if result["left_in_float"] else "")
        if not matmul_nbits:
            print(ROUNDED)


def described(path: Path, model: Model, output: Path, compressed: Model, seconds: float) -> dict[str, Any]:
    """What was done, for people and for JSON."""
    from jaxq.onnx_io.load import load

    bits = [int(each.qmax - each.qmin + 1).bit_length() - 1 for each in compressed.encodings.values()]
    return {
        "model": str(path),
        "output": str(output),
        "float_bytes": bytes_of(path, model.params),
        "compressed_bytes": bytes_of(output, load(output).params),
        "weights_in_4_bits": sum(each <= 4 for each in bits),
        "weights_in_8_bits": sum(each > 4 for each in bits),
        "left_in_float": json.loads(compressed.metadata["jaxq.left_in_float"]),
        "seconds": round(seconds, 3),
        "metadata": dict(compressed.metadata),
    }
