"""Quantizing a model as far as its accuracy allows: which layers are treated otherwise, found by measuring.

| module | what |
|---|---|
| `options` | what the search can be told |
| `treatments` | what may be done to a layer, as data |
| `base`, `space` | all candidate models as one program and choices of arrays |
| `ranking` | which layers cost most accuracy |
| `search` | which of them to treat, and how, as generators; knows no models |
| `trials` | the loop: evaluates what is proposed, keeps the best, ends |
| `store`, `identity` | what survives a kill, and which search it is |
| `report` | what the user reads |
| `front` | `quantize_with_accuracy_control`, which wires them |
"""
