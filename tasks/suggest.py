"""The nearest valid name, for error messages."""

import difflib
from collections.abc import Iterable


def nearest(given: str, valid: Iterable[str]) -> str:
    """Return `; did you mean …?`, or the valid names, or nothing where there are none."""
    options = sorted(valid)
    close = difflib.get_close_matches(given, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; valid: {', '.join(options[:20])}" if options else ""
