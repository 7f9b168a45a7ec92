"""Versions of the software that computes a result."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pgprune import __version__

_PACKAGES = (
    "torch triton transformers tokenizers safetensors datasets gymnasium stable-baselines3 numpy"
).split()


def versions() -> dict[str, str]:
    """Returns the versions of Python, pgprune and its packages, and the git commit if any.

    Returns:
        Versions by name. A commit with uncommitted changes ends in ``-dirty``.
    """
    by_name = {"python": platform.python_version(), "pgprune": __version__}
    for package in _PACKAGES:
        try:
            by_name[package] = version(package)
        except PackageNotFoundError:  # optional
            continue
    if commit := _git_commit(Path(__file__).resolve().parents[2]):
        by_name["git"] = commit
    return by_name


def _git_commit(repository: Path) -> str | None:
    """Returns the commit of this repository, not of one that contains an installed copy."""
    if not (repository / ".git").exists():  # installed from a wheel
        return None
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]  # else describe prefers tags
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
