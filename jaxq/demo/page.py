"""The demo's page: where the quantized model differs from the float one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxq.analysis import html as report
from jaxq.engine.model import Model
from jaxq.errors import RuntimeMissingError
from jaxq.files import write_text

SHOWN = 12  # images


def write_page(
    path: Path,
    rows: Sequence[tuple[str, str, str]],
    quantized: Model,
    image: np.ndarray,
    label: np.ndarray,
    logits: Mapping[str, np.ndarray],
) -> bool:
    """Writes the page; False where the packages that it needs are not installed.

    Args:
      path: the file.
      rows: of the table: what, float, int8.
      quantized: the model with its encodings.
      image, label: float32 [N, 1, 8, 8] and int64 [N], of the test split.
      logits: "float" and "int8" -> float32 [N, 10].
    """
    try:
        report.require_extra()
    except RuntimeMissingError:
        return False
    activations = [row for row in report.quantizers(quantized) if row.kind == "activation"]
    parts: list[report.Table | report.Figure] = [
        report.Table("Float and int8", ("", "float", "int8"), rows),
        logit_figure(logits),
        image_figure(image, label, logits),
        report.range_figure(activations),
    ]
    text = [f"A model of handwritten digits, quantized by jaxq and measured on {len(label)} test images."]
    write_text(path, report.page("jaxq demo", text, parts, footer="made by `jaxq demo`"))
    return True


def logit_figure(logits: Mapping[str, np.ndarray]) -> report.Figure:
    """Each logit before and after."""
    figure, axes = report.drawing(4.0)
    before, after = logits["float"].ravel(), logits["int8"].ravel()
    ends = [min(before.min(), after.min()), max(before.max(), after.max())]
    axes.plot(ends, ends, color="black", linewidth=0.5)
    axes.plot(before, after, ".", markersize=2, color=report.COLOR, rasterized=True)  # thousands of points
    axes.set_xlabel("logit of the float model")
    axes.set_ylabel("logit of the int8 model")
    caption = (
        "How far does quantization move the outputs? A point for each class of each image; on the line: not moved."
    )
    return report.Figure("Outputs", report.render(figure), caption)


def image_figure(image: np.ndarray, label: np.ndarray, logits: Mapping[str, np.ndarray]) -> report.Figure:
    """The images for which the probabilities changed the most."""
    probabilities = {name: softmax(each) for name, each in logits.items()}
    changes = np.abs(probabilities["float"] - probabilities["int8"]).max(axis=1)
    figure, axes = report.drawing(4.5, 2, SHOWN // 2)
    for place, number in zip(axes.flat, np.argsort(-changes, kind="stable"), strict=False):
        place.imshow(image[number, 0], cmap="gray_r")
        place.set_xticks([])
        place.set_yticks([])
        lines = [f"is {label[number]}"]
        for name, each in probabilities.items():
            digit = int(each[number].argmax())
            lines.append(f"{name}: {digit} ({each[number, digit]:.0%})")
        place.set_title("\n".join(lines), fontsize=8)
    caption = (
        f"Which images does it change the most? {SHOWN} of {len(label)}, with each model's answer and its probability."
    )
    return report.Figure("Images", report.render(figure), caption)


def softmax(logits: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
