"""Writes the tables of docs/targets.md from jaxq/placement/targets; a test holds the page to them.

python tools/target_tables.py            prints them
python tools/target_tables.py --write    puts them into the page
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from jaxq.placement.targets import TARGETS, Rule, Target

PAGE = Path(__file__).resolve().parent.parent / "docs" / "targets.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"
FIX = {"disable": "none", "first_layer_only": "first layers", "enable": "all"}


def listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "-"


def kinds(types: Iterable[str], storage: Iterable[str]) -> str:
    """Types by name; those that are only stored in brackets."""
    fast, stored = sorted(set(types) - set(storage)), sorted(set(types) & set(storage))
    return ", ".join(fast) + (f" ({', '.join(stored)})" if stored else "")


def overview(targets: Iterable[Target]) -> list[str]:
    rows = [
        "| target | activations | weights | biases | preset | 7-bit weights | outputs |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in targets:
        slow = each.storage_types | each.float_weights
        modes = "symmetric" if each.activation_modes == {"symmetric"} else "either"
        cells = (
            f"`{each.name}`",
            f"{kinds(each.activation_types, each.storage_types)}; {modes}",
            f"{kinds(each.weight_types, slow)}; {'either' if 'asymmetric' in each.weight_modes else 'symmetric'}",
            listed(each.bias_types) if each.bias_types else "float",
            each.default_preset,
            FIX[each.overflow_fix],
            "quantized" if each.outputs else "float",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def in_words(rule: Rule) -> str:
    """What of an operator is quantized."""
    parts = []
    if rule.activations is None:
        parts.append("all inputs")
    elif rule.activations:
        numbers = " and ".join(str(index) for index in rule.activations)
        parts.append(f"input{'s' if len(rule.activations) > 1 else ''} {numbers}")
    if rule.centered:
        parts[-1] += f" ({' and '.join(map(str, rule.centered))} in int8 with zero point 0)"
    if rule.activation_axis is not None:
        parts[-1] += f" per index of axis {rule.activation_axis}"
    for index in rule.weights:
        along = "per channel" if rule.per_channel else "with one scale"
        parts.append(f"weight {index} {along}")
    if rule.bias is not None:
        parts.append("bias int32")
    if rule.output:
        parts.append("output")
    if rule.body_only:
        parts.append("only where something quantized follows")
    parts += [f"only with {key} = {value}" for key, value in rule.only.items()]
    if rule.skip_only:
        parts.append("but not the summand that a kernel makes for it")
    if rule.stored:
        parts.append("but computed in float: a smaller file")
    return ", ".join(parts)


def operators(target: Target) -> list[str]:
    alike: dict[str, list[str]] = {}
    for name, rule in target.rules.items():
        alike.setdefault(in_words(rule), []).append(name)
    rows = [f"### {target.name}", "", f"{target.title}. Opset {target.opset} or newer. {target.evidence}", ""]
    rows += ["| operators | quantized |", "|---|---|"]
    rows += [f"| {', '.join(names)} | {words} |" for words, names in alike.items()]
    if target.other:
        rows.append(f"| all others | {in_words(target.other)} |")
    rows.append(f"| {listed(target.same_scale)} | input and output share one quantizer |")
    rows.append(f"| {listed(target.fused)} behind {listed(target.fusing)} | merged: no quantizer in between |")
    if target.patterns:
        rows.append(f"| groups: {', '.join(target.patterns)} | float |")
    if target.transformer_patterns or target.transformer_float:
        names = ", ".join([*sorted(target.transformer_float), *target.transformer_patterns])
        rows.append(f"| in transformers: {names} | float |")
    return rows


def tables() -> str:
    """The whole text between the marks."""
    lines = overview(TARGETS.values())
    for target in TARGETS.values():
        lines += ["", *operators(target)]
    return "\n".join(lines) + "\n"


def put_into(page: str) -> str:
    """The page with the tables of now between its marks."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + tables() + END + rest.partition(END)[2]


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(put_into(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables(), end="")
