"""DLC: a low-rank plugin for each task on top of a base method."""
