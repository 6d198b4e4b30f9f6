"""Data Docs need nothing from elsewhere, show every failure, and are replaced whole."""

import re
from html.parser import HTMLParser

import pytest

from tasks.data import prepared
from tasks.data.config import ValidationConfig
from tasks.data.validation import Validation, validate
from tests.data import prepared_data

HOSTILE = '<script>alert("x")</script> <img src=x onerror=alert(1)> $label ${y} {{ 7 * 7 }}'


class Page(HTMLParser):
    """Collects tags and what they point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    folder = prepared_data.good(tmp_path_factory.mktemp("docs") / "prepared")
    frame = prepared.read(folder, "train")
    frame.loc[:1, "label"] = HOSTILE
    frame.loc[3, "text"] = f"{HOSTILE} \ufffd"
    prepared_data.put(folder, "train", frame)
    docs = folder.parent / "docs"
    docs.mkdir()
    (docs / "stale.html").write_text("of an earlier night", encoding="utf-8")
    return validate(folder, ValidationConfig(), None, docs)


def pages(found: Validation) -> dict[str, Page]:
    return {
        path.name: Page(path.read_text(encoding="utf-8"))
        for path in found.docs.parent.glob("*.html")
    }


def test_the_pages_replace_those_of_before(found: Validation) -> None:
    assert set(pages(found)) == {
        "index.html",
        "between-splits.html",
        "figures.html",
        *(f"{split}.html" for split in prepared.COLUMNS),
    }
    names = {path.name for path in found.docs.parent.parent.iterdir()}
    assert names == {"prepared", "docs"}


def test_no_page_asks_for_anything_from_elsewhere(found: Validation) -> None:
    for name, page in pages(found).items():
        for link in page.links:
            assert (found.docs.parent / link).is_file(), f"{name} points to {link}"
        text = (found.docs.parent / name).read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(", text)


def test_texts_stay_texts(found: Validation) -> None:
    for page in pages(found).values():
        assert not page.tags & {"script", "img"}
    train = (found.docs.parent / "train.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in train
    assert "{{ 7 * 7 }}" in train


def test_the_first_page_tells_every_failure_and_every_check(found: Validation) -> None:
    text = found.docs.read_text(encoding="utf-8")
    assert len(found.failures) == 2
    for failure in found.failures:
        assert f"{failure.split}: {failure.name}" in text
        assert text.count(str(failure.rows[0]["id"])) >= 2  # in the message and in the table
    assert text.count("</tr>") >= len(found.checks)
    assert "failed" in text


def test_great_expectations_own_words_are_there(found: Validation) -> None:
    train = (found.docs.parent / "train.html").read_text(encoding="utf-8")
    assert "must never be null" in train
    assert "unexpected values found" in train
    assert "rendering" not in train  # its notice of a part that could not be rendered
