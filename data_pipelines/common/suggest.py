"""What was probably meant by a misspelt word."""

import difflib


def likeness(word: str, other: str) -> float:
    """0 to 1: difflib's ratio, but letters in another order (`rl` for `lr`) count as a near hit."""
    word, other = word.lower(), other.lower()
    if word != other and sorted(word) == sorted(other):
        return 0.9
    return difflib.SequenceMatcher(None, word, other).ratio()


def closest(word, candidates, cutoff: float = 0.6) -> str | None:
    """The candidate most like `word`, if any is like it; the first of equals."""
    scored = [(likeness(str(word), str(one)), one) for one in candidates]
    best = max(scored, key=lambda pair: pair[0], default=(0, None))
    return best[1] if best[0] >= cutoff else None


def did_you_mean(word: str | None) -> str:
    """The end of a message about a misspelt word; empty where nothing like it is known."""
    return f"; did you mean '{word}'?" if word else ""
