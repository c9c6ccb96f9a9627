"""What may be done to a layer in place of what the plan says. A treatment is data: who makes models reads what it does to the
layer, who searches reads what it costs, and who reports reads its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxq.numerics.estimators import QUANTILE_GRID, RangeEstimatorParameters, RangeEstimatorParametersSet


@dataclass(frozen=True)
class Treatment:
    """Attributes:
    name: in reports and files.
    cost: at run time; only the order counts, and the sum over layers.
    repair: the option that allows it for single layers; "": none does.
    weights: whether the weights are rounded.
    activations: whether what the layer reads is rounded. Where the weights alone are, it is for a smaller file.
    estimator: what finds the ranges of what the layer reads; None: the one asked for.
    activation_bits, weight_bits: of grids other than those of the plan.
    corrected: whether the bias makes up for rounding.
    """

    name: str
    cost: int = 0
    repair: str = ""
    weights: bool = True
    activations: bool = True
    estimator: str | None = None
    activation_bits: int | None = None
    weight_bits: int | None = None
    corrected: bool = True

    @property
    def weights_alone(self) -> bool:
        """Whether nothing but the weights is rounded."""
        return self.weights and not self.activations

    @property
    def own_ranges(self) -> bool:
        """Whether what the layer reads has other encodings than planned."""
        return self.estimator is not None or self.activation_bits is not None


NAMED = ("mse", "mean_minmax", "minmax", "percentile")  # of `RangeEstimatorParametersSet`
ESTIMATORS: Mapping[str, RangeEstimatorParameters] = {
    **{name: RangeEstimatorParametersSet.of(name) for name in NAMED},
    **QUANTILE_GRID,
}

AS_PLANNED = Treatment("as they are")
RANGES = tuple(  # single layers may have those with a name
    Treatment(f"range estimator {name}", cost, "range_estimator" if name in NAMED else "", estimator=name)
    for cost, name in enumerate(ESTIMATORS, 1)
)
UNCORRECTED = Treatment("no bias correction", 13, "bias_correction", corrected=False)
# The ranges of 16 bits hold what was seen: clipping gains nothing there.
WIDE = Treatment("16-bit activations", 14, "int16_activations", estimator="minmax", activation_bits=16)
WEIGHTS = Treatment("int8 weights", 15, "int8_weights", activations=False)
FLOAT = Treatment("float", 16, weights=False, activations=False)
TREATMENTS = (*RANGES, UNCORRECTED, WIDE, WEIGHTS, FLOAT)  # the cheapest first

Setting = Mapping[str, Treatment]  # layer -> what is done to it; layers that are not there are as planned


def named(setting: Setting) -> dict[str, str]:
    """Layer -> name of what is done to it."""
    return {layer: treatment.name for layer, treatment in setting.items()}
