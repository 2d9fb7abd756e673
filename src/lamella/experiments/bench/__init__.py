"""Measures the costs of learning on this machine: `lamella bench speed`, `memory` and `growth`."""
