"""What a result was computed with."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pgprune import __version__

_PACKAGES = (
    "torch triton transformers tokenizers safetensors datasets gymnasium stable-baselines3 numpy"
).split()


def versions() -> dict[str, str]:
    """The versions of Python, pgprune and the packages under it, and the git commit if any.

    Returns:
        Versions by name. A commit with uncommitted changes ends in ``-dirty``.
    """
    found = {"python": platform.python_version(), "pgprune": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if commit := _git_commit(Path(__file__).resolve().parents[2]):
        found["git"] = commit
    return found


def _git_commit(repository: Path) -> str | None:
    """The commit of our own repository, not of one around an installed copy."""
    if not (repository / ".git").exists():
        return None
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]  # the commit itself, never a tag
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
