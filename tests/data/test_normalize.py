import hashlib
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from tasks.data import normalize


def test_the_shown_form_keeps_what_a_reader_sees() -> None:
    assert normalize.shown("  It's\u00a0 great!\r\n<br />&amp; \u200bso\x07 ") == (
        "It's great! <br />&amp; so"
    )
    assert normalize.shown("cafe\u0301") == "caf\u00e9"
    assert normalize.shown("e\u200b\u0301") == "\u00e9"
    persian = "\u0645\u06cc\u200c\u062e"  # a joiner that the script needs
    assert normalize.shown(persian) == persian


def test_near_equal_texts_share_a_key() -> None:
    same = [
        "It's GREAT, really!",
        "its great really",
        "It\u2019s  great \u2014 REALLY...",
        "ｉｔｓgreatreally",
    ]
    assert len({normalize.key_form(text) for text in same}) == 1
    assert normalize.key_form("good \U0001f600") != normalize.key_form("good \U0001f622")
    assert normalize.key_form("Straße") == normalize.key_form("STRASSE")
    assert normalize.key_form("!!!") != normalize.key_form("???")


@given(st.text())
def test_normal_forms_are_settled_after_one_pass(text: str) -> None:
    once = normalize.shown(text)
    assert normalize.shown(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert normalize.digest(once) == hashlib.sha256(normalize.key_form(once).encode()).digest()
