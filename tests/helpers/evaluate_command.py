"""scripts/evaluate.py in this process."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


def evaluate(*words: str | Path) -> int:
    """Runs the command in this process; returns its exit status."""
    main = runpy.run_path(str(SCRIPT))["main"]
    before, sys.argv = sys.argv, [str(SCRIPT), *map(str, words)]
    try:
        return main()
    finally:
        sys.argv = before


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]
