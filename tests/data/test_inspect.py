from pathlib import Path

import pytest

from tasks.data.inspect import inspect
from tasks.errors import SourceError
from tests.data.checkouts import write_csv


def test_four_classes_and_odd_column_names_are_found(tmp_path: Path) -> None:
    rows = [
        (str(n), f"Topic {n % 4}", f"the {n} words of a text that is long enough {n}", "2020")
        for n in range(98)
    ]
    rows += [("98", "Topic 1", rows[0][2].upper(), "2020"), ("99", "", "no label here", "2020")]
    path = write_csv(tmp_path / "n.csv", rows, ("No.", "Kind of news", "What it says", "Year"))
    found = inspect(str(path))
    assert (found.text, found.label) == ("What it says", "Kind of news")
    assert found.label_counts == {"Topic 0": 25, "Topic 1": 26, "Topic 2": 24, "Topic 3": 24}
    assert (found.num_rows, found.num_duplicates) == (100, 1)
    assert (found.words_p50, found.words_p95) == (11, 11)
    assert found.max_length == 32  # 11 words, 1.4 tokens each, two marks: 18 tokens
    assert found.format == "csv"


def test_named_columns_stars_and_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    lines = [f"{n % 5 + 1};{'word ' * 600};x{n}" for n in range(50)]
    path.write_text("stars;body;id\n" + "\n".join(lines) + "\n")
    found = inspect(path.name, text="body", label="stars", root=tmp_path)
    assert list(found.label_counts) == ["1", "2", "3", "4", "5"]
    assert found.max_length == 512
    assert found.num_duplicates == 49
    with pytest.raises(SourceError, match="no column `bodi`; did you mean `body`"):
        inspect(path.name, text="bodi", label="stars", root=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("text,label\n", "no column looks like labels|has a header and no rows"),
        ("text\nabc\n", "one column"),
        ("text,label\nx,a\ny,a\n", "no column looks like labels"),
        ("17,a fine film,good\n18,a dull film,bad\n" * 9, "looks like a row, .*holds `17`"),
        ("a fine film,good\n" + "a plot,bad\na scene,good\n" * 9, "like a row, .*holds `good`"),
    ],
)
def test_what_makes_no_data_set_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(SourceError, match=message):
        inspect("a.csv", root=tmp_path)


def test_columns_that_are_named_may_look_like_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,spam,2026\n" + "x,ham,1\ny,spam,2\n" * 9)
    found = inspect("a.csv", text="text", label="spam", root=tmp_path)
    assert found.label_counts == {"ham": 9, "spam": 9}


def test_one_class_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,a\ny,a\n")
    with pytest.raises(SourceError, match="column `label` holds one value, `a`"):
        inspect("a.csv", text="text", label="label", root=tmp_path)
