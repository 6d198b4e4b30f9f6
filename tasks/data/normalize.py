"""Two normal forms of a text: the one that models see, and the one that tells texts apart."""

import hashlib
import re
import unicodedata

_SPACE = re.compile(r"\s+")
_BLANK = "\u00ad\u200b\u2060\ufeff"  # soft hyphen, zero-width space, word joiner, BOM
_IGNORED = ("P", "Z", "C")  # punctuation, separators, control and invisible characters


def shown(text: str) -> str:
    """Return the text as models see it: NFC, one space for every run of white space.

    Control characters and those of no width and no meaning are dropped (joiners, which some
    scripts need, stay); entities and tags are not touched: a model in production meets them too.
    """
    spaced = _SPACE.sub(" ", text)
    if not (spaced.isascii() and spaced.isprintable()):
        kept = (c for c in spaced if c not in _BLANK and unicodedata.category(c) != "Cc")
        # composed last: what stood between a letter and its accent may be gone
        spaced = _SPACE.sub(" ", unicodedata.normalize("NFC", "".join(kept)))
    return spaced.strip()


def key_form(text: str) -> str:
    """Return what near-equal texts share: letters, digits and symbols, compatible and folded.

    A text that has none of these keeps all its characters.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(c for c in folded if unicodedata.category(c)[0] not in _IGNORED)
    return kept or folded


def digest(text: str) -> bytes:
    """Return the sha256 of the text's key form: 32 bytes."""
    return hashlib.sha256(key_form(text).encode("utf-8")).digest()


def share(identity: bytes) -> float:
    """Return where a text lies between 0 and 1: its hash's first 8 bytes as a fraction."""
    return float(int.from_bytes(identity[:8], "big") / 2**64)
