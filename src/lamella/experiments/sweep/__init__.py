"""Sweeps: many configurations and seeds as ordinary run directories, several at a time."""
