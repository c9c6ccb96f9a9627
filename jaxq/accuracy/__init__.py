"""Quantizing a model as far as its accuracy allows: which layers stay in float, found by measuring.

| module | what |
|---|---|
| `options` | what the search can be told |
| `switches`, `space` | all candidate models as one program and choices of arrays |
| `validation`, `by_metric`, `by_function`, `runtime` | what a candidate is worth |
| `goals` | what is enough |
| `ranking` | which layers cost most accuracy |
| `search` | which of them to revert; knows no models |
| `state`, `report` | what survives a kill, what the user reads |
| `base`, `control`, `front` | `quantize_with_accuracy_control`, which wires them |
"""
