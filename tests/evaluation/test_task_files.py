"""Names of tasks are names, and neither paths nor patterns."""

import pytest

from pgprune import PruningError
from pgprune.evaluation.task_files import known_task_file, task_file


@pytest.mark.parametrize("task", ["**", "*", "../secret", "/etc/passwd", "", "a/b", "[a]", "~"])
def test_a_name_that_is_a_path_or_a_pattern_has_no_file(tmp_path, monkeypatch, task):
    for folder in (tmp_path, tmp_path / "text"):
        folder.mkdir(exist_ok=True)
        (folder / "a.jsonl").touch()
    (tmp_path / "secret.jsonl").touch()
    with pytest.raises(PruningError, match="has no file"):
        task_file(str(tmp_path / "text"), task)
    monkeypatch.setenv("PGPRUNE_ASSETS", str(tmp_path))
    assert known_task_file(task) is None
