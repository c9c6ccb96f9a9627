"""Weight-only compression: a float model in, the same model with the weights of its matrix products in 8 or 4 bits."""

from __future__ import annotations

import json
import numbers
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

import numpy as np

from jaxq.algorithms import Algorithm, run_pipeline
from jaxq.algorithms.compressible import NO_BACKUP, compression_sites, left_in_float, plain_products
from jaxq.algorithms.weight_compression import (
    GPTQ,
    CompressionSite,
    WeightRounding,
    moment_groups,
    output_error,
    second_moment,
)
from jaxq.checks import check_integer, member
from jaxq.data.samples import Samples
from jaxq.engine.collect import collect
from jaxq.engine.model import Model
from jaxq.errors import CalibrationError, ConfigError, InputError, JaxqWarning, ModelError, Option, about, inside
from jaxq.graph.fusion import simplify_gemm
from jaxq.graph.ir import Graph
from jaxq.graph.linear import is_product
from jaxq.graph.passes import keep_outputs_exact
from jaxq.numerics.quantizer import IntType, PerAxis, PerBlock, Scheme
from jaxq.numerics.weights import refuse_not_finite
from jaxq.onnx_io.load import Source, load
from jaxq.onnx_io.matmul_nbits import takes_block
from jaxq.pipeline import refuse_quantized
from jaxq.placement.place import IgnoredScope

NAMES_SHOWN = 3  # of weights of which the same is to be said
SMALLEST_GROUP = 32  # that a group size is adjusted down to; MatMulNBits takes 16 and more, powers of two


class CompressWeightsMode(StrEnum):
    """Bits of the weights, and whether zero is in the middle of the grid."""

    INT8_SYM = "int8_sym"
    INT8_ASYM = "int8_asym"
    INT4_SYM = "int4_sym"
    INT4_ASYM = "int4_asym"


class BackupMode(StrEnum):
    """What the layers get that are not worth, or do not stand, the mode's bits."""

    NONE = "none"
    INT8_SYM = "int8_sym"
    INT8_ASYM = "int8_asym"


class GroupSizeFallbackMode(StrEnum):
    """What becomes of a layer whose input channels do not divide into groups."""

    ERROR = "error"
    IGNORE = "ignore"  # it gets the backup mode
    ADJUST = "adjust"  # it gets the largest group that does divide, not below 32, else the backup mode


@about("dataset", kinds=(CalibrationError, InputError))
def compress_weights(
    model: Source,
    *,
    mode: CompressWeightsMode | str = CompressWeightsMode.INT8_ASYM,
    ratio: float = 1.0,
    group_size: int | None = None,
    ignored_scope: IgnoredScope | None = None,
    all_layers: bool = False,
    dataset: Iterable[Any] | None = None,
    subset_size: int = 128,
    gptq: bool = False,
    backup_mode: BackupMode | str = BackupMode.INT8_ASYM,
    group_size_fallback_mode: GroupSizeFallbackMode | str = GroupSizeFallbackMode.ADJUST,
    batch_size: int | None = None,
) -> Model:
    """Compresses the weights of MatMul, Gemm and embeddings (Gather); activations stay in float.

    Names follow `nncf.compress_weights`. Departures: groups that do not divide are adjusted rather than refused; which layers
    keep more bits (`ratio`) is decided by the squared error that the layer's output would have.

    Args:
      model: path, `onnx.ModelProto` or `Model`, in float.
      mode: "int8_asym", "int8_sym" (one scale a channel), "int4_sym" or "int4_asym" (in groups).
      ratio: for 4 bits, the share of the weights that get them; the most sensitive layers get the backup mode.
      group_size: for 4 bits, input channels that share a scale; -1: all; None: 128.
      ignored_scope: nodes whose weights stay in float.
      all_layers: give 4 bits to embeddings and to the last matrix product too.
      dataset: samples, for `gptq` and for measuring sensitivity; see `quantize`.
      subset_size: how many of them are used.
      gptq: round by GPTQ (arXiv:2210.17323) instead of to nearest.
      backup_mode: for layers that do not get 4 bits.
      group_size_fallback_mode: for layers that do not divide into groups.
      batch_size: samples run at a time, None to choose.

    Returns:
      A `Model` whose calls simulate the rounded weights; `jaxq.save` writes them as integers behind (blocked)
      DequantizeLinear, which ONNX Runtime runs as MatMulNBits.

    Raises:
      ModelError: the model is quantized already, or has no such weights.
      ConfigError: options are wrong or contradict each other.
      CalibrationError, InputError: the samples are empty, not finite or do not fit.
    """
    chosen = member(CompressWeightsMode, "mode", mode)
    backup = member(BackupMode, "backup_mode", backup_mode)
    fallback = member(GroupSizeFallbackMode, "group_size_fallback_mode", group_size_fallback_mode)
    group = checked_group_size(chosen, group_size)
    check_sensible(chosen, ratio, subset_size, gptq, dataset)
    model = load(model)
    refuse_quantized(model)
    with inside("ignored_scope"):
        ignored = (ignored_scope or IgnoredScope()).select(model.graph)
    graph, params = simplify_gemm(*keep_outputs_exact(model.graph, model.params))
    model = plain_products(model.replace(graph=graph, params=params))
    sites = compression_sites(model.graph, model.params, ignored)
    refuse_empty(model, sites, ignored)
    samples = () if dataset is None else Samples(model, dataset, subset_size, argument="dataset")
    primary = sites if all_layers or chosen not in FOUR_BITS else inner_sites(model.graph, sites)
    wanted = {site.param: scheme_of(model, site, chosen, group, fallback) for site in primary}
    narrow = insensitive(model, primary, wanted, ratio, samples, batch_size)
    final = {name: scheme for name, scheme in wanted.items() if scheme is not None and name in narrow}
    if backup is not BackupMode.NONE:
        spare = CompressWeightsMode(backup.value)
        final |= {s.param: per_channel(model, s, spare) for s in sites if s.param not in final}
    steps: list[Algorithm] = [WeightRounding(final)]
    if gptq:
        matrices = [site for site in sites if site.data and site.param in final and is_matrix(model, site)]
        steps += [GPTQ(group, final) for group in moment_groups(model.params, matrices)]
    done = run_pipeline(steps, model, samples, batch_size)
    for doubt in samples.outlier_warnings() if isinstance(samples, Samples) else ():
        warnings.warn(doubt, JaxqWarning, stacklevel=2)
    left = left_in_float(done, final, ignored)
    warn_of_float(done, left)
    warn_of_groups(chosen, group, fallback, wanted, backup)
    record = {"jaxq.compress_weights": chosen.value, "jaxq.group_size": str(group), "jaxq.gptq": str(gptq).lower()}
    return done.replace(metadata=done.metadata | record | {"jaxq.left_in_float": json.dumps(left)})


FOUR_BITS = (CompressWeightsMode.INT4_SYM, CompressWeightsMode.INT4_ASYM)
GRIDS = {
    CompressWeightsMode.INT8_SYM: IntType(8, narrow=True),
    CompressWeightsMode.INT8_ASYM: IntType(8, signed=False),
    CompressWeightsMode.INT4_SYM: IntType(4),
    CompressWeightsMode.INT4_ASYM: IntType(4, signed=False),
}


def checked_group_size(mode: CompressWeightsMode, group_size: int | None) -> int:
    """Input channels to a scale; -1 for all of them."""
    if mode not in FOUR_BITS:
        if group_size not in (None, -1):
            raise ConfigError(
                Option(("group_size",), group_size),
                " with ",
                Option(("mode",), mode.value),
                ", which has one scale a channel; leave it out",
            )
        return -1
    if group_size in (None, -1):
        return 128 if group_size is None else -1
    check_integer("group_size", group_size, at_least=2)
    assert group_size is not None
    return int(group_size)


def check_sensible(
    mode: CompressWeightsMode, ratio: float, subset_size: int, gptq: bool, dataset: Iterable[Any] | None
) -> None:
    """Refuses options that contradict each other.

    Raises:
      ConfigError: says which, and what to do.
    """
    check_integer("subset_size", subset_size, at_least=1)
    if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real) or not 0 <= ratio <= 1:
        raise ConfigError(Option(("ratio",), ratio), "; expected a share of the weights between 0 and 1")
    if ratio != 1 and mode not in FOUR_BITS:
        raise ConfigError(
            Option(("ratio",), ratio), " with ", Option(("mode",), mode.value), ": a mix needs a mode of 4 bits"
        )
    if gptq and dataset is None:
        raise ConfigError(
            Option(("gptq",)), " needs a ", Option(("dataset",)), ": it looks at the inputs of each layer"
        )


def refuse_empty(model: Model, sites: Sequence[CompressionSite], ignored: Iterable[str]) -> None:
    """Refuses a model without weights to compress, and weights that are not finite.

    Raises:
      ModelError: says what weights there are.
      CalibrationError: a weight has NaN or infinity.
    """
    if not sites:
        left = listed(left_in_float(model, (), ignored))
        raise ModelError(
            "the model has no weights to compress: no MatMul, Gemm or Gather with a float32 or float16 weight that is not ignored"
            + (f"; it has {left}" if left else "")
        )
    for site in sites:
        refuse_not_finite(site.param, np.asarray(model.params[site.param]))


def warn_of_float(model: Model, left: Mapping[str, str]) -> None:
    """Warns of weights that stay in float though nobody asked for it."""
    unasked = {name: why for name, why in left.items() if why not in ("ignored", NO_BACKUP)}
    if unasked:
        part, all_ = (sum(model.params[name].size for name in names) for names in (unasked, model.params))
        message = f"{len(unasked)} weight(s), {part / all_:.1%} of the parameters, stay in float: {listed(unasked)}"
        warnings.warn(message, JaxqWarning, stacklevel=3)


def warn_of_groups(
    mode: CompressWeightsMode,
    group: int,
    fallback: GroupSizeFallbackMode,
    wanted: Mapping[str, Scheme | None],
    backup: BackupMode,
) -> None:
    """Warns where a group size did not fit, so that weights got more bits, or none of them the size."""
    if mode not in FOUR_BITS or group == -1:
        return
    wide = sorted(name for name, scheme in wanted.items() if scheme is None)
    sizes = [
        scheme.granularity.size for scheme in wanted.values() if scheme and isinstance(scheme.granularity, PerBlock)
    ]
    if wide:
        instead = "float" if backup is BackupMode.NONE else backup.value
        names = ", ".join(map(repr, wide[:NAMES_SHOWN])) + (" ..." if len(wide) > NAMES_SHOWN else "")
        smaller = f", nor of a smaller power of two from {SMALLEST_GROUP}" * (fallback is GroupSizeFallbackMode.ADJUST)
        warnings.warn(
            f"the input channels of {len(wide)} of {len(wanted)} weights do not divide into groups of {group}{smaller}: "
            f"{names} get {instead} instead of {mode.value}; choose another group_size",
            JaxqWarning,
            stacklevel=3,
        )
    elif sizes and group not in sizes:
        found = ", ".join(map(str, sorted(set(sizes))))
        message = f"no weight divides into groups of {group}: groups of {found} were taken; ask for one of these"
        warnings.warn(message, JaxqWarning, stacklevel=3)
    if sizes and not all(map(takes_block, sizes)):
        message = (
            f"ONNX Runtime unpacks groups of {group} at every run; its kernel takes 16, 32, 64 and other powers of two"
        )
        warnings.warn(message, JaxqWarning, stacklevel=3)


def listed(left: Mapping[str, str]) -> str:
    """Weights with the reasons why they stay in float, those with the same together, shortened."""
    alike: dict[str, list[str]] = {}
    for name, why in left.items():
        alike.setdefault(why, []).append(repr(name))
    return "; ".join(
        f"{', '.join(names[:NAMES_SHOWN])}{f' and {len(names) - NAMES_SHOWN} more' if len(names) > NAMES_SHOWN else ''} ({why})"
        for why, names in alike.items()
    )


def inner_sites(graph: Graph, sites: Sequence[CompressionSite]) -> tuple[CompressionSite, ...]:
    """All but the embeddings and the last matrix product, which may be one weight: there few bits cost most."""
    known = {site.param for site in sites}
    products = [node.inputs[1] for _, node in graph.walk() if is_product(node) and node.inputs[1] in known]
    return tuple(site for site in sites if site.data and site.param != products[-1])


def per_channel(model: Model, site: CompressionSite, mode: CompressWeightsMode) -> Scheme:
    """One scale for each output channel (of an embedding: for each row; of a stack of matrices: in each of them)."""
    symmetric = mode in (CompressWeightsMode.INT8_SYM, CompressWeightsMode.INT4_SYM)
    shape = model.params[site.param].shape
    channels = PerAxis(1 - site.axis) if len(shape) == 2 else PerBlock(site.axis, shape[site.axis])
    return Scheme(GRIDS[mode], symmetric, channels)


def scheme_of(
    model: Model, site: CompressionSite, mode: CompressWeightsMode, group: int, fallback: GroupSizeFallbackMode
) -> Scheme | None:
    """How a weight is quantized in a mode; None if it does not divide into groups and may stay out.

    Raises:
      ConfigError: it does not divide, and that is to be an error.
    """
    plain = per_channel(model, site, mode)
    if group == -1:
        return plain
    length = model.params[site.param].shape[site.axis]
    if length % group == 0:
        return replace(plain, granularity=PerBlock(site.axis, group))
    if fallback is GroupSizeFallbackMode.ERROR:
        raise ConfigError(
            f"the {length} input channels of weight {site.param!r} do not divide into groups of {group}; choose another ",
            Option(("group_size",)),
            ", or ",
            Option(("group_size_fallback_mode",), "adjust"),
        )
    smaller = largest_group(length, group)
    if fallback is GroupSizeFallbackMode.IGNORE or smaller is None:
        return None
    return replace(plain, granularity=PerBlock(site.axis, smaller))


def is_matrix(model: Model, site: CompressionSite) -> bool:
    """Whether the weight is one matrix, and not a stack of them."""
    return model.params[site.param].ndim == 2


def largest_group(length: int, limit: int) -> int | None:
    """The largest power of two below `limit`, and not below 32, that divides `length`."""
    sizes = [1 << power for power in range(limit.bit_length(), 0, -1) if SMALLEST_GROUP <= 1 << power < limit]
    return next((size for size in sizes if length % size == 0), None)


def insensitive(
    model: Model,
    sites: Sequence[CompressionSite],
    schemes: Mapping[str, Scheme | None],
    ratio: float,
    samples: Iterable[Mapping[str, Any]],
    batch_size: int | None,
) -> set[str]:
    """The params, least sensitive first, that together are at most `ratio` of the weights of these sites."""
    usable = [(site, scheme) for site in sites if (scheme := schemes[site.param]) is not None]
    if ratio == 1:
        return {site.param for site, _ in usable}
    schemes_of = {site.param: scheme for site, scheme in usable}
    errors: dict[str, float] = {}
    for group in moment_groups(model.params, [site for site, _ in usable]):
        needs = {site.data: second_moment(model.params[site.param].shape[site.axis]) for site in group if site.data}
        moments = collect(model, [needs], samples, batch_size=batch_size)[0] if samples and needs else {}
        for site in group:
            moment = moments.get(site.data)
            if moment is not None and not np.any(moment):
                moment = None  # there is none of what the host runs, or a loop's body
            value = np.asarray(model.params[site.param])
            errors[site.param] = output_error(value, schemes_of[site.param], site.axis, moment)
    room = ratio * sum(model.params[site.param].size for site in sites)
    chosen: set[str] = set()
    for name in sorted(errors, key=lambda each: (errors[each], each)):
        room -= model.params[name].size
        if room < 0:
            break
        chosen.add(name)
    return chosen
