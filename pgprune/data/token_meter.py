"""Counts the tokens that are asked of a frozen model."""

from collections.abc import Iterator
from contextlib import contextmanager


class TokenMeter:
    """Counts tokens: a mask on a batch (B, T) costs B * T, a backward pass as much again.

    ``MaskedLM`` owns one and counts its own calls. Code that runs the model in another way adds
    what it runs: ``soft_losses``, the second pass of repair, and ``sample_text``.

    Attributes:
        tokens: counted so far.
    """

    def __init__(self, tokens: int = 0) -> None:
        self.tokens = tokens

    def add(self, tokens: int) -> None:
        """Counts some tokens."""
        self.tokens += tokens

    @contextmanager
    def counting(self, tokens: int) -> Iterator[None]:
        """Counts a given number of tokens in place of what the body adds.

        For work that replicas share: what a step costs does not depend on who does it.
        """
        before = self.tokens
        yield
        self.tokens = before + tokens
