"""Modules that several methods use: heads, growing classifiers, distillation."""
