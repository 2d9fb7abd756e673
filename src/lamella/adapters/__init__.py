"""Low-rank branches on the layers of a model: the layers, where branches attach, grow, act and merge."""
