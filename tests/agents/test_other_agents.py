"""The agent of docs/other_agents.md, which knows nothing of this project, runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "other_agents.md"


def test_the_agent_on_the_page_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(code.splitlines()) < 60
    quick = code.replace("clip = 16, 40,", "clip = 3, 2,")
    quick = quick.replace("prune_rate=0.4", "prune_rate=0.4, evaluation_windows=8")
    assert quick.count("= 3, 2, 4, 0.2") == quick.count("evaluation_windows=8") == 1
    found: dict[str, object] = {}
    exec(quick, found)
    units = found["env"].unwrapped.units
    assert units.prune_rate(torch.as_tensor(found["mask"])) == pytest.approx(0.4, abs=1e-3)
    printed = capsys.readouterr().out
    assert re.search(r"   6 masks, loss [\d.]+\n", printed)
    assert re.search(r"\{'code': [\d.]+, 'prose': [\d.]+\}", printed)
