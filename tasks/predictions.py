"""A model's answers to held-out text, example by example, kept for paired statistics."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tasks import claims, files
from tasks.code_hash import code_hash
from tasks.data import prepared
from tasks.workspace import Workspace

Probabilities = Callable[[Sequence[str]], np.ndarray]
JUDGED_SPLITS = ("validation", "test")
"""Validation data ranks, test data judges; slices are test data of other domains."""
SLICES = "slices"


def held_out(folder: Path, max_slice_texts: int) -> pd.DataFrame:
    """Return split, domain, id, text, label of all that models are judged on.

    A slice is cut to its first `max_slice_texts` rows; rows lie in the order of their hash, so
    that is a random and stable choice.
    """
    parts = []
    for split in JUDGED_SPLITS:
        frame = prepared.read(folder, split)[["id", "text", "label"]]
        parts.append(frame.assign(split=split, domain=""))
    slices = prepared.read(folder, SLICES)
    for domain, frame in slices.groupby("domain", sort=True):
        cut = frame.head(max_slice_texts)[["id", "text", "label"]]
        parts.append(cut.assign(split=SLICES, domain=domain))
    return pd.concat(parts, ignore_index=True)


def answered(
    workspace: Workspace,
    model_sha256: str,
    data_md5: str,
    rows: pd.DataFrame,
    labels: tuple[str, ...],
    load: Callable[[], Probabilities],
) -> Path:
    """Return a Parquet file with the model's answers to `rows`, computed if it is not there.

    Columns: split, domain, id, label, and `p_<number>` with the probability of each label.
    """
    material = [model_sha256, data_md5, list(labels), len(rows), code_hash("tasks.runtime.session")]
    key = hashlib.sha256(json.dumps(material).encode()).hexdigest()
    final = workspace.cache / "predictions" / f"{key}.parquet"
    if final.is_file():
        return final
    probabilities = load()(rows["text"].tolist())
    table = rows[["split", "domain", "id", "label"]].copy()
    for number in range(len(labels)):
        table[f"p_{number}"] = probabilities[:, number]
    with files.staged(claims.staging(workspace), key[:16]) as folder:
        part = folder / final.name
        table.to_parquet(part, index=False)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, final)
    return final


def read(
    path: Path, labels: tuple[str, ...], split: str, domain: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities float32 (rows, labels) and labels int64 (rows,) of one split."""
    table = pd.read_parquet(path)
    rows = table[(table["split"] == split) & (table["domain"] == domain)]
    columns = [f"p_{number}" for number in range(len(labels))]
    index = {label: number for number, label in enumerate(labels)}
    numbers = rows["label"].map(index).to_numpy(dtype=np.int64)
    return rows[columns].to_numpy(dtype=np.float32), numbers


def domains(path: Path) -> tuple[str, ...]:
    """Return the names of the slices answered."""
    table = pd.read_parquet(path, columns=["split", "domain"])
    return tuple(sorted(table.loc[table["split"] == SLICES, "domain"].unique()))
