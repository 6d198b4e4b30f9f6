"""Texts as people really type them: the same labels, harder to read.

Each change is drawn from the text itself, so that every model and every night sees the same ones.
"""

import re
import string
import zlib
from collections.abc import Callable, Mapping

import numpy as np

_TYPO_SHARE = 0.3
"""Share of the longer words that get a typing error."""
_LONG_WORD = 4
_WORD = re.compile(r"\w+")
_NO_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


def typing_errors(text: str) -> str:
    """Swap, drop or double one inner letter in some of the longer words."""
    random = np.random.default_rng(zlib.crc32(text.encode()))

    def spoilt(match: re.Match[str]) -> str:
        word = match.group()
        if len(word) < _LONG_WORD or random.random() >= _TYPO_SHARE:
            return word
        place = int(random.integers(1, len(word) - 2))
        kind = random.integers(3)
        if kind == 0:
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        if kind == 1:
            return word[:place] + word[place + 1 :]
        return word[: place + 1] + word[place:]

    return _WORD.sub(spoilt, text)


def upper_case(text: str) -> str:
    """Write all in capitals. A model that folds case sees no difference."""
    return text.upper()


def without_punctuation(text: str) -> str:
    """Leave out all ASCII punctuation."""
    return " ".join(text.translate(_NO_PUNCTUATION).split()) or text


def first_half(text: str) -> str:
    """Cut off after half of the words."""
    words = text.split()
    return " ".join(words[: max(1, (len(words) + 1) // 2)])


CHANGES: Mapping[str, Callable[[str], str]] = {
    "typing errors": typing_errors,
    "upper case": upper_case,
    "no punctuation": without_punctuation,
    "first half": first_half,
}
