"""What was probably meant by a misspelt word."""

import difflib
from collections.abc import Iterable


def likeness(word: str, other: str) -> float:
    """0 to 1: difflib's ratio, but letters in another order (`rl` for `lr`) count as a near hit."""
    word, other = word.lower(), other.lower()
    if word != other and sorted(word) == sorted(other):
        return 0.9
    return difflib.SequenceMatcher(None, word, other).ratio()


def closest(word: object, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The candidate most like `word`, if any is like it; the first of equals."""
    scored = [(likeness(str(word), one), one) for one in candidates]
    if not scored:
        return None
    likest, best = max(scored, key=lambda pair: pair[0])
    return best if likest >= cutoff else None


def did_you_mean(word: str | None) -> str:
    """The end of a message about a misspelt word; empty where nothing like it is known."""
    return f"; did you mean '{word}'?" if word else ""
