"""Progress bars of transformers, in the form of all other progress here."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging

from pgprune.utils.progress import track


@contextmanager
def bars_as_phases() -> Iterator[None]:
    """Shows as phases what transformers shows in bars of its own while it loads."""

    def bar(items: Iterable[Any], desc: str = "items", **_: Any) -> Iterable[Any]:
        return track(items, desc.rstrip("."))

    def hook(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return bar(*args, **options) if args else make(**options)

    gguf: Any = modeling_gguf_pytorch_utils
    own, before = gguf.tqdm, logging.set_tqdm_hook(hook)
    gguf.tqdm = bar  # it asks no hook
    try:
        yield
    finally:
        gguf.tqdm = own
        logging.set_tqdm_hook(before)
