import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tasks.data import tables
from tasks.errors import SourceError

WANTED = ("text", "label")


def table(path: Path, content: bytes, **more: Any) -> tables.Table:
    path.write_bytes(content)
    return tables.Table(path, tables.format_of(path.name), path.name, **more)


def read(given: tables.Table) -> list[tables.Row]:
    return list(tables.rows(given, WANTED))


def test_csv_with_bom_crlf_quotes_and_blank_lines(tmp_path: Path) -> None:
    given = table(
        tmp_path / "a.csv",
        b'\xef\xbb\xbfid,label,text\r\n1,good,"one, two"\r\n\r\n2,bad,"a ""b""\nc"\r\n3,bad,x\r\n',
    )
    assert read(given) == [(2, ("one, two", "good")), (4, ('a "b"\nc', "bad")), (6, ("x", "bad"))]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_csv_tells_its_delimiter_by_the_header(tmp_path: Path, mark: str) -> None:
    given = table(tmp_path / "a.csv", mark.join(WANTED).encode() + f"\na, b{mark}x\n".encode())
    assert read(given) == [(2, ("a, b", "x"))]


def test_tsv_takes_quotes_as_text(tmp_path: Path) -> None:
    given = table(tmp_path / "a.tsv", b'"so good\tyes\r\n', columns=WANTED)
    assert read(given) == [(1, ('"so good', "yes"))]


def test_jsonl_and_parquet_give_single_values_as_text(tmp_path: Path) -> None:
    records = [
        {"text": "a", "label": 4},
        {"text": "b", "label": 4.0},
        {"text": "c", "label": None},
        {"text": "d", "label": True},
    ]
    lines = "\n".join(json.dumps(r) for r in records) + "\n\n"
    given = table(tmp_path / "a.jsonl", lines.encode())
    assert read(given) == [
        (1, ("a", "4")), (2, ("b", "4")), (3, ("c", None)), (4, ("d", "true"))
    ]  # fmt: skip
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"label": [1.0, None], "text": ["x", "y"]}), path)
    assert read(tables.Table(path, "parquet", "a")) == [(1, ("x", "1")), (2, ("y", None))]


BROKEN: list[tuple[str, bytes, str]] = [
    ("a.csv", b"", r"a\.csv is empty"),
    ("a.csv", b"\n \n", r"a\.csv is empty"),
    ("a.jsonl", b"", r"a\.jsonl is empty"),
    ("a.csv", b"test,label\na,b\n", r"no column `text`; did you mean `test`\?"),
    ("a.csv", b"text,label\na,b\nc,\xff\n", r"a\.csv:3: byte 0xff at position 3 of the line"),
    ("a.csv", "text,label\n".encode("utf-16"), r"UTF-16; save it as UTF-8"),
    ("a.csv", b"text,label\na,b,c\n", r"a\.csv:2: 3 cells where there are 2 columns"),
    ("a.csv", b'text,label\nx,y\n"a,b\nc,d\n', r"a\.csv:3: a quote opens here and is not closed"),
    ("a.csv", b"text,label\na\x00,b\n", r"a\.csv:2: a zero byte"),
    ("a.csv", b"text,text,label\na,b,c\n", r"two columns are named `text`"),
    ("a.tsv", b"text\tlabel\nno label\n", r"a\.tsv:2: 1 cells"),
    ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', r"a\.jsonl:2: not valid JSON"),
    ("a.jsonl", b'{"text": "a"}\n', r"a\.jsonl:1: no column `label`"),
    ("a.jsonl", b'["a"]\n', r"a\.jsonl:1: a line must hold one JSON object"),
    ("a.jsonl", b'{"text": {}, "label": 1}\n', r"column `text` holds a dict"),
    ("a.jsonl", b'{"text": "\\ud83d", "label": 1}\n', r"a\.jsonl:1: .*surrogate"),
    ("a.jsonl", b'{"text": "a", "label": ' + b"1" * 5000 + b"}\n", r"a\.jsonl:1: not valid JSON"),
    ("a.jsonl", b"[" * 200_000, r"a\.jsonl:1: "),
    ("a.parquet", b"PAR1 no PAR1", r"not a Parquet file"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_file_is_refused_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read(table(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_line_of_ten_megabytes_is_refused_before_it_is_held(tmp_path: Path) -> None:
    given = table(tmp_path / "a.csv", b"text,label\nok,x\n" + b"a" * 10_000_000 + b",x\n")
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"a\.csv:3: the line is longer than 1,000,000 bytes"):
        read(given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_line_of_just_the_limit_passes(tmp_path: Path) -> None:
    given = table(tmp_path / "a.csv", b"text,label\r\n" + b"a" * 98 + b",x\r\n", max_line_bytes=100)
    assert read(given) == [(2, ("a" * 98, "x"))]
    with pytest.raises(SourceError, match="longer than 99"):
        read(table(tmp_path / "b.csv", (tmp_path / "a.csv").read_bytes(), max_line_bytes=99))


def test_the_ending_must_tell_the_format() -> None:
    with pytest.raises(SourceError, match="set `format`"):
        tables.format_of("movies.txt")
