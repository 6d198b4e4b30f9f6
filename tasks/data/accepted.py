"""What is remembered of an accepted night's data, for later nights to be compared with.

One Parquet file, so that it is replaced whole: a row for each text of each split (id, split,
label, length in characters), and beside the schema, as JSON, the vocabulary of the training split
and the share of the test split's words that it lacks.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import files
from tasks.data import prepared
from tasks.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd

FILE = "accepted.parquet"
_STATISTICS = b"nightpress"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Accepted:
    """The data of an accepted night."""

    rows: "pd.DataFrame"
    """id, split, label (null in transfer text), characters."""
    vocabulary: frozenset[str]
    """Words of the training split, case folded."""
    unknown_share: float
    """Share of the words of the test split that are not in `vocabulary`."""


def record(folder: Path, destination: Path) -> None:
    """Write what later nights need of the prepared data in `folder`; whole, or not at all.

    Raises StoreError where the data cannot be read or the disk is full.
    """
    import pandas as pd
    import pyarrow
    from pyarrow import parquet

    frames = {split: prepared.read(folder, split) for split in prepared.COLUMNS}
    known = words(frames["train"]["text"])
    statistics = {
        "vocabulary": sorted(known),
        "unknown_share": unknown_share(words(frames["test"]["text"]), known.keys()),
    }
    rows = [
        frame.reindex(columns=["id", "label"]).assign(split=split, characters=lengths(frame))
        for split, frame in frames.items()
    ]
    schema = pyarrow.schema(
        [("id", "string"), ("split", "string"), ("label", "string"), ("characters", "int64")],
        metadata={_STATISTICS: json.dumps(statistics, ensure_ascii=False)},
    )
    table = pyarrow.Table.from_pandas(
        pd.concat(rows, ignore_index=True), schema.remove_metadata(), preserve_index=False
    ).replace_schema_metadata(schema.metadata)
    with files.staged(destination.parent, ".accepted") as staging:
        parquet.write_table(table, staging / FILE, compression="zstd")
        files.sync_folder(staging)
        destination.mkdir(exist_ok=True)
        os.replace(staging / FILE, destination / FILE)


def read(folder: Path) -> Accepted | None:
    """Return what `record` wrote to `folder`; None where no night was accepted yet.

    Raises StoreError where the file is broken.
    """
    from pyarrow import parquet

    path = folder / FILE
    if not path.exists():
        return None
    try:
        table = parquet.read_table(path)
        statistics = json.loads(table.schema.metadata[_STATISTICS])
        return Accepted(
            table.select(["id", "split", "label", "characters"]).to_pandas(),
            frozenset(statistics["vocabulary"]),
            float(statistics["unknown_share"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's are among these
        raise StoreError(
            f"{path} cannot be read; delete it, and the next accepted night writes it anew"
        ) from error


def lengths(frame: "pd.DataFrame") -> "pd.Series":
    """Return the texts' lengths in characters."""
    return frame["text"].str.len().astype("int64")


def words(texts: Iterable[str]) -> Counter[str]:
    """Return how often each word occurs: a run of letters, digits and underscores, case folded."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(_WORD.findall(text.casefold()))
    return found


def unknown_share(found: Counter[str], vocabulary: Set[str]) -> float:
    """Return the share of running words that are not in `vocabulary` (out-of-vocabulary rate)."""
    total = found.total()
    unknown = sum(count for word, count in found.items() if word not in vocabulary)
    return unknown / total if total else 0.0
