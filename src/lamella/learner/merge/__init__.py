"""Adapters of several models or PEFT folders, merged into one PEFT folder."""
