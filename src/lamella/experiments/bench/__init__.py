"""What learning costs on this machine: `lamella bench speed`, `memory` and `growth`."""
