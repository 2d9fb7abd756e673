"""DLC: a plugin of LoRA lanes per task beside a base method."""
