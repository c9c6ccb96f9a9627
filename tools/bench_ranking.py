"""How good the rankings of accuracy control are: what reverting the first layers of each leaves of the error.

    python tools/bench_ranking.py TASK [--hard | --per-tensor] [--rankings alone,gradient,exact] [--data FOLDER]

Each ranking is made on the same samples, as many as it takes by default (exact: 32). Then the first 1, 2, 4, ... layers of it go
back to float, biases are corrected anew, and the divergence of the outputs from those of the float model (squared distance over
squared size) is taken on 48 other samples. CPU seconds are those of the ranking, compilation included.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

from bench_accuracy import REPOSITORY, evaluate_module
from bench_accuracy_control import case_of

OTHERS = 48
SIZES = {"alone": 8, "gradient": 32, "exact": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--hard", action="store_true", help="weights of 4 bits, one scale for each tensor")
    parser.add_argument("--per-tensor", action="store_true", help="weights of 8 bits, one scale for each tensor")
    parser.add_argument("--rankings", default="alone,gradient,exact")
    arguments = parser.parse_args()
    import jaxq
    from jaxq.accuracy.ranking import Ranker
    from jaxq.accuracy.space import Space, quantized
    from jaxq.accuracy.treatments import FLOAT
    from jaxq.options import QuantizeOptions
    from jaxq.pipeline import prepare

    warnings.simplefilter("ignore", jaxq.JaxqWarning)
    weights = None
    if arguments.hard or arguments.per_tensor:
        weights = jaxq.QuantizationParameters(num_bits=4 if arguments.hard else 8, per_channel=False)
    advanced = jaxq.AdvancedQuantizationParameters(weights_quantization_params=weights)
    evaluate = evaluate_module(arguments.data)
    task = evaluate.TASKS[arguments.task]
    feeds = [feed for feed, _ in case_of(evaluate, arguments.task, max(SIZES.values()) + OTHERS).items]
    space = Space(quantized(prepare(task.model, list(task.calib(100)), QuantizeOptions(advanced_parameters=advanced))))
    others = Ranker(space, feeds[-OTHERS:], FLOAT)
    lengths = [length for length in (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56) if length < len(space.layers)]
    print(f"{len(space.layers)} layers; all quantized: {others.divergence({}):.4f}")
    print(f"| ranking | samples | CPU s | {' | '.join(map(str, lengths))} |\n|{'---|' * (3 + len(lengths))}")
    known: dict[frozenset[str], float] = {}
    for name in arguments.rankings.split(","):
        ranker = Ranker(space, feeds[: SIZES[name]], FLOAT)
        began = time.process_time()
        ranked: list[Any] = {"alone": ranker.alone, "gradient": ranker.by_gradient, "exact": ranker.exactly}[name]({})
        seconds = time.process_time() - began
        cells = []
        for length in lengths:
            first = frozenset(each.layer for each in ranked[:length])
            if first not in known:
                known[first] = others.divergence(dict.fromkeys(first, FLOAT))
            cells.append(f"{known[first]:.4f}")
        print(f"| {name} | {SIZES[name]} | {seconds:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
