"""Federated learning: the training loop over clients whose samples stay with them, and only sums and updates travel."""
