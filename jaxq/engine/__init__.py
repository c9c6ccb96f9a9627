"""Runs a graph: the one walk, what is compiled and what the host does, batches, devices, programs, `Model`."""
