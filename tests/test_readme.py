"""What the README shows works, and what it points at exists."""

import re
from pathlib import Path

import pytest

from pgprune.utils.command_names import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")


def test_the_ten_lines_of_python_run(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    quick = code.replace("total_timesteps=2000", "total_timesteps=4")
    quick = quick.replace('model="builtin"', 'model="builtin", evaluation_windows=8')
    assert quick.count("=4") == quick.count("evaluation_windows=8") == 1
    found: dict[str, object] = {}
    exec(quick, found)
    assert found["env"].unwrapped.units.prune_rate(found["mask"]) == pytest.approx(0.4, abs=1e-3)
    assert re.search(r"\{'code': [\d.]+, 'prose': [\d.]+\}", capsys.readouterr().out)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    scripts = re.findall(r"python ((?:scripts|benchmarks)/\w+\.py)", text)
    missing += [script for script in scripts if not (ROOT / script).exists()]
    commands = set(re.findall(r"(?:^|`)pgprune ([a-z-]+)", text, flags=re.MULTILINE))
    assert not missing and commands <= set(COMMANDS)


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")]
    assert not [page for page in pages if f"({page})" not in index and str(page) != "README.md"]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 200
