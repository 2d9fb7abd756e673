"""One comparison in a process of its own: `python -m lamella.experiments.against.worker METHOD CHECKOUT OUT`.

Functions of the checkout run here and nowhere else. What was found is written to OUT as JSON, since they may print.
"""

import importlib
import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lamella.common.checks import first_line

__all__ = ["compared"]


def compared(method: str, path: Path) -> dict[str, Any]:
    """Return {"rows": [...]}, or {"error": why it is not known}, in one line."""
    from lamella.experiments.against.checkout import Checkout, on_the_cpu
    from lamella.experiments.against.known import KNOWN

    known = KNOWN[method]
    module, function = known.adapter.split(".")
    compare = getattr(importlib.import_module(f"lamella.experiments.against.{module}"), function)
    sys.path.append(str(path))
    on_the_cpu()
    try:
        return {"rows": [asdict(row) for row in compare(Checkout(path, known.home))]}
    except Exception as fault:  # the border to code that nobody here knows
        if type(fault) is ValueError and str(path) in str(fault):  # of Checkout, which says what is missing
            return {"error": str(fault)}
        steps = traceback.extract_tb(fault.__traceback__)
        last = next((step for step in reversed(steps) if step.filename.startswith(str(path))), steps[-1])
        return {"error": f"{type(fault).__name__} in {last.filename}, line {last.lineno}: {first_line(fault)}"}


if __name__ == "__main__":
    name, folder, out = sys.argv[1:]
    found = compared(name, Path(folder))
    Path(out).write_text(json.dumps(found))
