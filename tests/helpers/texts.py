"""Texts in files of every format, and what the reader makes of them."""

from pathlib import Path

import pytest

from pgprune.data.documents import calibration_parts, iterate


def calibration_documents(source, **options):
    """Opens a text that is no mix."""
    (part,) = calibration_parts(str(source), **options)
    return part.documents


def read(source) -> list[str]:
    return list(iterate(calibration_documents(source)))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_parquet(path: Path, **columns: list) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table(columns), path)
    return path
