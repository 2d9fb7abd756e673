"""Images of the Hugging Face hub, decoded on reading."""

import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from lamella.data.decoding import decode

__all__ = ["HubRows"]


class HubRows:
    """The images of one split, decoded on reading."""

    encoded = True

    def __init__(self, rows: Any, column: str, name: str) -> None:
        from datasets import Image

        self.rows = rows.select_columns([column]).cast_column(column, Image(decode=False))
        self.column, self.name = column, name
        self.lock = threading.Lock()  # arrow tables are read by one thread at a time

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> Tensor:
        return decode(self._encoded(i), f"{i} of {self.name}")

    def identity(self, i: int) -> bytes:
        """The encoded image itself."""
        encoded = self._encoded(i)
        return encoded.read_bytes() if isinstance(encoded, Path) else encoded

    def content(self, i: int) -> bytes:
        return self.identity(i)

    def _encoded(self, i: int) -> bytes | Path:
        with self.lock:
            cell = self.rows[i][self.column]
        if cell is None:
            raise ValueError(f"row {i} of {self.name} has no image")
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])
