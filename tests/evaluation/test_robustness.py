"""What is done to texts is small, is done everywhere alike, and is what its name says."""

import string

from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.robustness import (
    CHANGES,
    first_half,
    typing_errors,
    upper_case,
    without_punctuation,
)

TEXT = "A gripping, beautifully acted film; it never loses its way until the very last minute."


@given(st.text(min_size=1, max_size=200))
def test_every_change_is_the_same_each_time_and_leaves_something(text: str) -> None:
    for change in CHANGES.values():
        assert change(text) == change(text)
        assert change(text) or not text.strip()


def test_some_words_get_one_typing_error_each() -> None:
    before, after = TEXT.split(), typing_errors(TEXT).split()
    changed = [(b, a) for b, a in zip(before, after, strict=True) if a != b]
    assert 1 <= len(changed) < len(before) / 2
    for old, new in changed:
        assert abs(len(old) - len(new)) <= 1
        assert (old[0], old[-1]) == (new[0], new[-1])
        assert set(new) <= set(old)
        assert len(old.strip(string.punctuation)) >= 4


def test_the_others_do_what_they_say() -> None:
    assert upper_case("so Good") == "SO GOOD"
    assert without_punctuation("well-made, isn't it?") == "well made isn t it"
    assert without_punctuation("?!") == "?!"
    assert first_half("one two three four five") == "one two three"
    assert first_half("one") == "one"
