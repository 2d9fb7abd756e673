"""A benchmark's table is on the screen and in a file."""

import json
from pathlib import Path

import pytest
from rich.table import Table

from lamella.experiments.bench.shown import show


def test_rows_are_written_by_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("form", "ratio", title="Forms")
    table.add_row("frozen", "1.00")
    table.add_row("trained", "1.92 (1.88 to 1.97)")
    show(table, "forms", out=tmp_path)
    assert json.loads((tmp_path / "forms.json").read_text()) == {
        "title": "Forms",
        "rows": [{"form": "frozen", "ratio": "1.00"}, {"form": "trained", "ratio": "1.92 (1.88 to 1.97)"}],
    }
    assert "1.92 (1.88 to 1.97)" in capsys.readouterr().out
