"""Reads tables of text strictly: a broken file is refused with the line, never repaired.

CSV may quote; its delimiter is told by the header. TSV has no quoting: a quote is plain text.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.errors import SourceError
from tasks.suggest import nearest

Format = Literal["csv", "tsv", "jsonl", "parquet"]
Row = tuple[int, tuple[str | None, ...]]
_FORMATS: dict[str, Format] = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
DELIMITERS = (",", ";", "\t", "|")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Table:
    """A file of rows, and how it is read."""

    path: Path
    format: Format
    shown: str
    """Its name in messages."""
    columns: tuple[str, ...] | None = None
    """Names where a CSV or TSV file has no header."""
    max_line_bytes: int = 1_000_000


def format_of(name: str) -> Format:
    """Return the format that a file's ending tells; raises SourceError where it tells none."""
    found = _FORMATS.get(Path(name).suffix.lower())
    if found is None:
        raise SourceError(
            f"{name}: the ending does not tell the format; set `format` to csv, tsv, jsonl or "
            "parquet"
        )
    return found


def columns(table: Table) -> tuple[str, ...]:
    """Return the names of the columns: of the header, of the first JSON line, of the schema."""
    if table.format == "parquet":
        return tuple(_parquet(table).schema_arrow.names)
    if table.columns is not None:
        return table.columns
    number, line = _first_line(table)
    if table.format == "jsonl":
        return tuple(_json_object(table, number, line))
    return tuple(_split_header(line, delimiter(table)))


def rows(table: Table, wanted: Sequence[str]) -> Iterator[Row]:
    """Yield (line, values of the `wanted` columns); a number or truth value comes as text.

    For Parquet the line is the row, from 1. Raises SourceError with the line where a column is
    missing, the file is empty, bytes are not UTF-8, a line is too long, or its form is broken.
    """
    if table.format == "parquet":
        return _parquet_rows(table, wanted)
    if table.format == "jsonl":
        return _json_rows(table, wanted)
    return _delimited_rows(table, wanted)


def as_text(value: Any) -> str | None:
    """Return a cell as text: 4.0 as `4`, true as `true`, nothing as None.

    Raises TypeError for what is no single value.
    """
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    raise TypeError(type(value).__name__)


def _lines(table: Table) -> Iterator[tuple[int, str]]:
    """Yield (number, line with its end); no more than one line is ever held."""
    limit = table.max_line_bytes
    with table.path.open("rb") as file:
        number = 0
        while raw := file.readline(limit + 3):
            number += 1
            if number == 1:
                raw = raw.removeprefix(_BOM)
            if len(raw.rstrip(b"\r\n")) > limit:
                raise SourceError(
                    f"{table.shown}:{number}: the line is longer than {limit:,} bytes; a file "
                    "with such lines is broken, or raise `prepare.max_line_bytes`"
                )
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise SourceError(_undecodable(table, number, raw, error)) from None
            if "\x00" in line:
                raise SourceError(
                    f"{table.shown}:{number}: a zero byte; save the file as UTF-8 text"
                )
            yield number, line


def _undecodable(table: Table, number: int, raw: bytes, error: UnicodeDecodeError) -> str:
    if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"{table.shown}:1: the file is UTF-16; save it as UTF-8"
    byte = raw[error.start]
    return (
        f"{table.shown}:{number}: byte 0x{byte:02x} at position {error.start + 1} of the line is "
        "not UTF-8; convert the file (`iconv -t UTF-8`)"
    )


def _first_line(table: Table) -> tuple[int, str]:
    for number, line in _lines(table):
        if line.strip():
            return number, line
    raise SourceError(f"{table.shown} is empty")


def delimiter(table: Table, expected: Sequence[str] = ()) -> str:
    """Return what parts the cells: what the first line has most of, given `expected` is there."""
    if table.format == "tsv":
        return "\t"
    _, line = _first_line(table)
    cells = {mark: _split_header(line, mark) for mark in DELIMITERS}
    if table.columns is not None:
        return next((m for m in DELIMITERS if len(cells[m]) == len(table.columns)), ",")
    for mark in DELIMITERS:
        if expected and set(expected) <= set(cells[mark]):
            return mark
    return max(DELIMITERS, key=lambda mark: len(cells[mark]))


def _split_header(line: str, mark: str) -> list[str]:
    text = line.rstrip("\r\n")
    cells = text.split(mark) if mark == "\t" else next(csv.reader([text], delimiter=mark), [])
    return [cell.strip() for cell in cells]


def _places(table: Table, names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    for name in wanted:
        if name not in names:
            raise SourceError(f"{table.shown}: no column `{name}`{nearest(name, names)}")
        if list(names).count(name) > 1:
            raise SourceError(f"{table.shown}: two columns are named `{name}`; rename one")
    return [list(names).index(name) for name in wanted]


def _delimited_rows(table: Table, wanted: Sequence[str]) -> Iterator[Row]:
    _first_line(table)  # an empty file is named as such
    mark = delimiter(table, wanted)
    csv.field_size_limit(table.max_line_bytes)
    lines = (line for _, line in _lines(table))
    if table.format == "tsv":
        reader = csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, delimiter=mark, strict=True)
    names = table.columns
    places: list[int] = [] if names is None else _places(table, names, wanted)
    begins = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise SourceError(f"{table.shown}:{begins}: {_csv_problem(error)}") from None
        if cells is None:
            return
        line, begins = begins, reader.line_num + 1
        if not cells:
            continue
        if names is None:
            names = tuple(cell.strip() for cell in cells)
            places = _places(table, names, wanted)
        elif len(cells) != len(names):
            raise SourceError(
                f"{table.shown}:{line}: {len(cells)} cells where there are {len(names)} columns; "
                "a text that holds the separator must be quoted (CSV), or has no place (TSV)"
            )
        else:
            yield line, tuple(cells[place] for place in places)


def _csv_problem(error: csv.Error) -> str:
    text = str(error)
    if "field limit" in text or "unexpected end" in text:
        return "a quote opens here and is not closed"
    if "new-line character" in text:
        return "a lone carriage return; save the file with line ends LF or CRLF"
    return f"not valid CSV: {text}"


def _json_object(table: Table, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:  # JSONDecodeError, or a number of thousands of digits
        why = getattr(error, "msg", "a number that is too long")
        raise SourceError(f"{table.shown}:{number}: not valid JSON: {why}") from None
    except RecursionError:
        raise SourceError(f"{table.shown}:{number}: JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise SourceError(f"{table.shown}:{number}: a line must hold one JSON object")
    return value


def _json_rows(table: Table, wanted: Sequence[str]) -> Iterator[Row]:
    _first_line(table)
    for number, line in _lines(table):
        if not line.strip():
            continue
        record = _json_object(table, number, line)
        for name in wanted:
            if name not in record:
                raise SourceError(
                    f"{table.shown}:{number}: no column `{name}`{nearest(name, record)}"
                )
        yield number, _cells(table, number, wanted, record.__getitem__)


def _cells(
    table: Table, number: int, wanted: Sequence[str], get: Callable[[str], Any]
) -> tuple[str | None, ...]:
    values = []
    for name in wanted:
        try:
            text = as_text(get(name))
        except TypeError as error:
            raise SourceError(
                f"{table.shown}:{number}: column `{name}` holds a {error}, not a single value"
            ) from None
        if text is not None and len(text) > table.max_line_bytes:
            raise SourceError(
                f"{table.shown}:{number}: column `{name}` is longer than "
                f"{table.max_line_bytes:,} characters; raise `prepare.max_line_bytes`"
            )
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError:
            raise SourceError(
                f"{table.shown}:{number}: column `{name}` holds half of a surrogate pair"
            ) from None
        values.append(text)
    return tuple(values)


def _parquet(table: Table) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(table.path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise SourceError(f"{table.shown} is not a Parquet file that can be read: {first}") from (
            error
        )


def _parquet_rows(table: Table, wanted: Sequence[str]) -> Iterator[Row]:
    import pyarrow

    file = _parquet(table)
    _places(table, file.schema_arrow.names, wanted)
    number = 0
    try:
        for batch in file.iter_batches(batch_size=2048, columns=list(dict.fromkeys(wanted))):
            for record in batch.to_pylist():
                number += 1
                yield number, _cells(table, number, wanted, record.__getitem__)
    except (pyarrow.ArrowInvalid, OSError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise SourceError(f"{table.shown}: broken after row {number}: {first}") from error
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{table.shown}: a text after row {number} is not UTF-8 ({error.reason})"
        ) from None
    if number == 0:
        raise SourceError(f"{table.shown} is empty")
