"""Structure: the graph, selections and patterns in it, and rewriting that leaves its function as it is."""
