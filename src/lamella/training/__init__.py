"""The training loop, and the pass without training: precision, checkpoints, optimisers, schedules."""
