"""The registry of published results, and what runs of a cell of it give beside the reported values."""
