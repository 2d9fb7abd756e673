"""Low-rank branches on the layers of a model: how they attach, grow, act and merge."""
