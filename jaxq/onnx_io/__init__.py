"""The edge to ONNX: its files, loaded, checked and saved, and its runtime; and to Flax."""
