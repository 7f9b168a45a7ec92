"""The calibration text in two parts: a stream to train on, and windows to validate masks on."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from zlib import crc32

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pgprune.data.documents import Documents, Part, calibration_parts, iterate
from pgprune.data.stream import CalibrationStream, DataConfig
from pgprune.data.tokens import cut, encode, window_start
from pgprune.data.windows import MixedWindows, TextWindows, Windows
from pgprune.errors import PruningError

VALIDATION_WINDOWS = 32
"""Windows that masks are validated on, at most."""

SHARE = 16
"""One document in this many is held out of the training stream."""

_LARGER_SHARES = (SHARE, 8, 4, 2)
_MOST_DOCUMENTS = 256  # of those held out are read: a streamed text need not be read to its end


def open_calibration(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 0,
    parts: Sequence[Part] | None = None,
) -> tuple[CalibrationStream, Tensor]:
    """Opens the calibration text as a stream, and as windows that the stream never gives.

    These windows validate masks: they choose the best one, draw the learning curve and decide
    between repairs. They are the same for every seed, so that curves of seeds compare. Of a mix,
    every part has windows that are held out, and they are mixed by the same weights.

    Args:
        config: which text, and how it is cut.
        tokenizer: of the model.
        seed: of the stream.
        parts: of the text if it is open already; None opens it.

    Returns:
        The stream, and at most ``VALIDATION_WINDOWS`` windows, (V, T) int64 on the CPU.

    Raises:
        PruningError: the text cannot be read, or is shorter than a batch or the asked samples.
    """
    length = config.sequence_length

    def has_window(documents: Documents) -> bool:
        ids, start = encode(tokenizer, iterate(documents)), window_start(tokenizer)
        windows = chain.from_iterable(cut(ids, length, start))
        return next(windows, None) is not None

    trained, validated = list[TextWindows](), list[TextWindows]()
    parts = calibration_parts(config.calibration) if parts is None else parts
    for part in parts:
        sides = hold_out(part.documents, has_window)
        if sides is None:
            raise PruningError(
                f"{part.name} is shorter than two windows of {length} tokens, one to calibrate and "
                "one to validate on; give more text"
            )
        training, held = sides
        few = list(islice(iterate(held), _MOST_DOCUMENTS))
        trained.append(TextWindows(training, tokenizer, length, part.name))
        validated.append(TextWindows(few, tokenizer, length, part.name))
    weights = [part.weight for part in parts]

    def mixed(texts: Sequence[TextWindows]) -> Windows:
        if len(texts) == 1:
            return texts[0]
        return MixedWindows(texts, weights, f"the calibration text {config.calibration!r}")

    samples, batch = config.calibration_samples, config.batch_size
    stream = CalibrationStream(mixed(trained), batch, seed, samples)
    stream.head(samples or batch)  # raises where the text is too short
    return stream, CalibrationStream(mixed(validated), 1).first(VALIDATION_WINDOWS)


def hold_out(
    documents: Documents, enough: Callable[[Documents], bool]
) -> tuple[Documents, Documents] | None:
    """Splits a text into what is trained on and what is only validated on.

    Documents are held out by a checksum of their text: the same document, or a copy of it, is on
    the same side in every run, whatever the seed, the order and the range. A text of few documents
    may have none on one side. Then the end of every document is held out, a sixteenth of it or as
    much as ``enough`` needs, up to a half.

    Args:
        documents: the whole text.
        enough: whether a side holds at least what is needed.

    Returns:
        The documents to train on and those held out; None where no split gives both sides enough.
    """
    ends = (partial(_by_place, share=share) for share in _LARGER_SHARES)
    splits: list[Callable[[str, bool], str]] = [_by_document, *ends]
    for part in splits:
        training, held = (_select(documents, part, held) for held in (False, True))
        if enough(held) and enough(training):
            return training, held
    return None


def _by_document(text: str, held: bool) -> str:
    # A checksum and not the index, so that copies of a document never stand on both sides.
    is_held = crc32(text.encode(errors="surrogatepass")) % SHARE == 0
    return text if is_held == held else ""


def _by_place(text: str, held: bool, share: int) -> str:
    end = len(text) - len(text) // share
    return text[end:] if held else text[:end]


def _select(documents: Documents, part: Callable[[str, bool], str], held: bool) -> Documents:
    """Returns what belongs to one side; a text that is streamed stays so."""
    read = partial(_read, documents, part, held)
    return read if callable(documents) else list(read())


def _read(documents: Documents, part: Callable[[str, bool], str], held: bool) -> Iterator[str]:
    return (chosen for text in iterate(documents) if (chosen := part(text, held)))
