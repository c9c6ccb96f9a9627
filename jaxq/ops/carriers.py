"""Operators that make no new values, by what becomes of those of their first input."""

from __future__ import annotations

KEEPING = frozenset({"Identity", "Cast", "Dropout"})  # all of them, where they are
SHAPING = KEEPING | {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}  # all of them, in their order
MOVING = SHAPING | {"Transpose"}  # each of them once
REPEATING = MOVING | {"Expand", "Tile"}  # each of them at least once
CARRYING = REPEATING | {"Slice", "Split", "Gather"}  # some of them

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})  # between a tensor and its integers
