"""Numbers: quantizers, what is observed of tensors, and the ranges that follow. Knows no graph."""
