"""A model that keeps learning: its configuration, its folder, predictions, inspection and exports."""
