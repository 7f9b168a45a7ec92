"""What tests of scripts/compare_methods.py share."""

from collections.abc import Callable
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_methods.py"
PAGE = "Before.\n<!-- comparison -->\nold\n<!-- end -->\n<!-- other -->\nkept\n<!-- end -->\n"

Compare = Callable[..., int]


def lines(output: Path) -> list[str]:
    return (output / "comparison.jsonl").read_text().splitlines()
