"""The forms that `ratios.py` compares: a file for each kind of computation."""
