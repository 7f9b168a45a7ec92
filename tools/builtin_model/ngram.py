"""An interpolated Kneser-Ney n-gram, to compare the built-in model with on the same tokens."""

import numpy as np

_Table = tuple[np.ndarray, np.ndarray]


class KneserNey:
    """Interpolated modified Kneser-Ney (Chen & Goodman, 1998) over token ids.

    An n-gram is one int64 (its ids as digits), a table is the sorted n-grams with a value for each.
    The highest order counts occurrences, the lower ones count how many different tokens precede.
    """

    def __init__(self, tokens: np.ndarray, vocabulary: int, order: int = 4) -> None:
        """Counts.

        Args:
            tokens: the training stream, 1-D.
            vocabulary: number of ids; ``vocabulary ** order`` must fit an int64.
            order: the longest n-gram.
        """
        self.vocabulary = vocabulary
        self.levels = [_Level(counts, vocabulary) for counts in self._counts(tokens, order)]

    def _counts(self, tokens: np.ndarray, order: int) -> list[_Table]:
        """Returns the counts of each order, unigrams first."""
        grams, occurrences = np.unique(_encode(tokens, order, self.vocabulary), return_counts=True)
        tables = [(grams, occurrences)]
        for length in range(order, 1, -1):
            # A suffix counts the distinct n-grams that end in it: the different tokens before it.
            suffixes = tables[0][0] % self.vocabulary ** (length - 1)
            tables.insert(0, np.unique(suffixes, return_counts=True))
        return tables

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the probability of each of ``order`` or more tokens given the ones before it."""
        probabilities = np.full(len(tokens), 1 / self.vocabulary)
        for index, level in enumerate(self.levels):
            reached = probabilities[index:]
            probabilities[index:] = level.refine(
                _encode(tokens, index + 1, self.vocabulary), reached
            )
        return probabilities


class _Level:
    """One order: discounted counts, and what the discount leaves to the order below."""

    def __init__(self, counts: _Table, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.grams, occurrences = counts
        # An absent n-gram or context is found at the last entry: count 0, or the lower order alone.
        discounts = _discounts(occurrences)[np.minimum(occurrences, 3)]
        self.discounted = np.append(occurrences - discounts, 0.0)
        self.contexts, inverse = np.unique(self.grams // vocabulary, return_inverse=True)
        self.totals = np.append(np.bincount(inverse, occurrences), 1.0)
        self.backoff = np.append(np.bincount(inverse, discounts), 1.0)

    def refine(self, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Interpolates this order's estimate with the lower order's."""
        context = _find(self.contexts, grams // self.vocabulary)
        count = self.discounted[_find(self.grams, grams)]
        # p(w | h) = (max(c(hw) - D, 0) + sum of discounts of h * p_lower(w)) / c(h)
        return (count + self.backoff[context] * lower) / self.totals[context]


def _encode(tokens: np.ndarray, length: int, vocabulary: int) -> np.ndarray:
    """Returns the int64 of the n-gram that ends at each token but the first ``length - 1``."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int64), length)
    return windows @ vocabulary ** np.arange(length - 1, -1, -1, dtype=np.int64)


def _find(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns each key's position in a sorted table, or the table's length if it is absent."""
    positions = np.searchsorted(table, keys)
    present = table[np.minimum(positions, len(table) - 1)] == keys
    return np.where(present, positions, len(table))


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Returns what to subtract from a count of 0, 1, 2 and 3 or more."""
    ones, twos, threes, fours = (max(1, int((counts == number).sum())) for number in (1, 2, 3, 4))
    # Chen & Goodman: Y = n1 / (n1 + 2 n2), D_k = k - (k + 1) Y n_{k+1} / n_k
    share = ones / (ones + 2 * twos)
    discounts = np.array(
        [
            0,
            1 - 2 * share * twos / ones,
            2 - 3 * share * threes / twos,
            3 - 4 * share * fours / threes,
        ]
    )
    return np.clip(discounts, 0, [0, 1, 2, 3])


def mixture_weight(first: np.ndarray, second: np.ndarray) -> float:
    """Finds by EM the w that makes ``w * first + (1 - w) * second`` most likely."""
    weight = 0.5
    for _ in range(50):
        joint = weight * first
        weight = float(np.mean(joint / (joint + (1 - weight) * second)))
    return weight
