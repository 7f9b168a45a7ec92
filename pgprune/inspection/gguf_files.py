"""Reads GGUF files that others have written, by the package gguf."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pgprune.errors import PruningError, first_line

_TOKENS = "tokenizer.ggml.tokens"


def load_gguf() -> ModuleType:
    """Imports the package gguf.

    Raises:
        PruningError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise PruningError("the format gguf needs pip install 'pgprune[gguf]'") from error
    return gguf


def read_gguf(path: Path) -> Any:
    """Opens a GGUF file, without reading its tensors.

    Returns:
        A ``gguf.GGUFReader``.

    Raises:
        PruningError: it cannot be read, is cut short or no GGUF file; the package gguf is not
            installed.
    """
    gguf = load_gguf()
    try:
        reader = gguf.GGUFReader(path)
        fields = reader.fields
        last = fields[next(reversed(fields))]
    except (OSError, ValueError, LookupError, StopIteration) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise PruningError(
            f"the GGUF file {str(path)!r} cannot be read ({reason}); take a whole GGUF file of the "
            "dense model"
        ) from error
    # A file without tensors may end within its last field.
    is_text = last.types[-1] is gguf.GGUFValueType.STRING
    if is_text and int(last.parts[-2][0]) != last.parts[-1].nbytes:
        raise PruningError(f"the GGUF file {str(path)!r} is cut short; copy it again")
    _check_layout(path, reader)
    return reader


def _check_layout(path: Path, reader: Any) -> None:
    """Checks that tensors follow each other to the end of a file, as llama.cpp asks of them."""
    place = reader.data_offset
    for tensor in reader.tensors:
        if tensor.data_offset != place:
            raise PruningError(
                f"the GGUF file {str(path)!r} is damaged: the tensor {tensor.name!r} begins at "
                f"byte {tensor.data_offset:,}, not at {place:,}; copy it again"
            )
        place += -(-tensor.n_bytes // int(reader.alignment)) * int(reader.alignment)
    if reader.tensors and path.stat().st_size > place:
        raise PruningError(
            f"the GGUF file {str(path)!r} goes on behind its last tensor, {tensor.name!r}; copy it "
            "again"
        )


def has_vocabulary(reader: Any) -> bool:
    """Whether an open GGUF file holds a tokenizer."""
    return _TOKENS in reader.fields


def read_vocabulary(path: Path) -> dict[str, Any]:
    """Reads the fields of a GGUF file that describe its tokenizer, by key.

    Raises:
        PruningError: as ``read_gguf``, or the file has no vocabulary.
    """
    reader = read_gguf(path)
    if not has_vocabulary(reader):
        raise PruningError(
            f"the GGUF file {str(path)!r} has no vocabulary; take one of the dense model that has"
        )
    return {key: field for key, field in reader.fields.items() if key.startswith("tokenizer.")}


def copy_vocabulary(writer: Any, vocabulary: Mapping[str, Any], size: int) -> None:
    """Gives the GGUF file of a writer another's vocabulary, for a model of ``size`` tokens.

    Raises:
        PruningError: the vocabulary has another size.
    """
    tokens = len(vocabulary[_TOKENS].data)
    if tokens != size:
        raise PruningError(
            f"the vocabulary of --vocab-gguf has {tokens:,} tokens, but the model knows {size:,}; "
            "take a GGUF file of the dense model"
        )
    for key, field in vocabulary.items():
        value, (kind, *of) = field.contents(), field.types
        if value != []:  # GGUF files hold empty lists, but the package does not write them
            writer.add_key_value(key, value, kind, of[-1] if of else None)


def gguf_parameters(path: Path) -> int:
    """Counts the parameters in a GGUF file; factors of the rotary embedding are none."""
    tensors = read_gguf(path).tensors
    return sum(int(tensor.n_elements) for tensor in tensors if tensor.name != "rope_freqs.weight")
