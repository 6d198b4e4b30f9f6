"""A model's answers to held-out text, example by example, kept for paired statistics."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tasks import claims, files
from tasks.code_hash import code_hash
from tasks.data import prepared
from tasks.evaluation.robustness import CHANGES
from tasks.runtime.fingerprint import machine
from tasks.workspace import Workspace

Probabilities = Callable[[Sequence[str]], np.ndarray]
JUDGED_SPLITS = ("validation", "test")
"""Validation data ranks, test data judges; slices are test data of other domains."""
SLICES = "slices"
ROBUSTNESS = "robustness"
"""Test texts changed as people type; the domain is the name of the change."""


def held_out(folder: Path, max_slice_texts: int, max_robustness_texts: int) -> pd.DataFrame:
    """Return split, domain, id, text, label of all that models are judged on.

    A slice is cut to its first `max_slice_texts` rows, and the first `max_robustness_texts` of the
    test split come again, changed; rows lie in the order of their hash, so that is a random and
    stable choice.
    """
    parts = []
    for split in JUDGED_SPLITS:
        frame = prepared.read(folder, split)[["id", "text", "label"]]
        parts.append(frame.assign(split=split, domain=""))
    slices = prepared.read(folder, SLICES)
    for domain, frame in slices.groupby("domain", sort=True):
        cut = frame.head(max_slice_texts)[["id", "text", "label"]]
        parts.append(cut.assign(split=SLICES, domain=domain))
    again = prepared.read(folder, "test")[["id", "text", "label"]].head(max_robustness_texts)
    for name, change in CHANGES.items():
        parts.append(again.assign(text=again["text"].map(change), split=ROBUSTNESS, domain=name))
    return pd.concat(parts, ignore_index=True)


def answered(
    workspace: Workspace,
    model: str,
    answerer: str,
    rows: pd.DataFrame,
    labels: tuple[str, ...],
    load: Callable[[], Probabilities],
) -> Path:
    """Return a Parquet file with the model's answers to `rows`, computed if it is not there.

    `model` is the hash of its content, `answerer` the module that runs it. Columns: split, domain,
    id, label, and `p_<number>` with the probability of each label.
    """
    material = {
        "model": model,
        "code": code_hash(answerer),
        "machine": machine(),  # an int8 model answers otherwise on another processor
        "rows": rows.to_dict("list"),
        "labels": labels,
    }
    key = files.key(material)
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
        files.sync_folder(folder)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, final)
    return final


def of_split(
    table: pd.DataFrame, labels: tuple[str, ...], split: str, domain: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities float32 (rows, labels) and labels int64 (rows,) of one split.

    `table` is what `answered` wrote.
    """
    rows = table[(table["split"] == split) & (table["domain"] == domain)]
    columns = [f"p_{number}" for number in range(len(labels))]
    index = {label: number for number, label in enumerate(labels)}
    numbers = rows["label"].map(index).to_numpy(dtype=np.int64)
    return rows[columns].to_numpy(dtype=np.float32), numbers


def domains(table: pd.DataFrame, split: str) -> tuple[str, ...]:
    """Return the names of the slices, or of the changes, that were answered."""
    return tuple(sorted(table.loc[table["split"] == split, "domain"].unique()))
