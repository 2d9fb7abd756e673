"""The one training loop and the one pass without training: precision, checkpoints, optimisers, schedules."""
