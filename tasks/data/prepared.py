"""Reads prepared data: Parquet splits, and the facts of their preparation."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
COLUMNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SPLITS, ("id", "text", "label")),
    "transfer": ("id", "text", "domain"),
    "slices": ("id", "text", "label", "domain"),
}
FACTS = "facts.json"


def read(folder: Path, split: str) -> "pd.DataFrame":
    """Return one of `COLUMNS` as a frame of strings, rows in the order of their ids.

    Raises StoreError where the file is missing or broken.
    """
    import pandas as pd

    path = folder / f"{split}.parquet"
    try:
        return pd.read_parquet(path, columns=list(COLUMNS[split]))
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise StoreError(
            f"{path} cannot be read; delete {folder}, and it is restored from DVC"
        ) from error


def facts(folder: Path) -> dict[str, Any]:
    """Return labels, rows, dropped rows and sources, as `prepare` wrote them.

    Raises StoreError where the file is missing or broken.
    """
    path = folder / FACTS
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read; delete {folder}, and it is restored from DVC"
        ) from error
    return found
