"""Which layers cost the variants that lose too much, found once for their content and kept."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter

from tasks import context, files, store
from tasks.code_hash import code_hash
from tasks.evaluation.explained import Undoing
from tasks.evaluation.gates import ACCURACY
from tasks.night import Night
from tasks.runtime.fingerprint import machine
from tasks.training.progress import Progress
from tasks.trial import Trial
from tasks.undoing import undo


def lossy(night: Night, trial: Trial) -> list[str]:
    """Return tonight's nodes that a gate on accuracy rejects, where they are to be explained."""
    if not night.settings.evaluation.max_undoing_texts:
        return []
    return [
        key
        for key, verdict in trial.verdicts.items()
        if key in night.plan.nodes
        and any(gate.name in ACCURACY and not gate.passed for gate in verdict.gates)
    ]


def undoing(night: Night, key: str, progress: Progress) -> Undoing:
    """Return what is regained by undoing each part of the node `key`, measured now or before."""
    path = _path(night, key)
    if not path.is_file():
        ground, config = night.ground, night.settings.evaluation
        torch.set_num_threads(ground.threads)
        examples = context.labelled(ground.data_folder, "validation", ground.labels)
        found = undo(
            store.load(night.workspace, night.plan.baseline),
            store.load(night.workspace, key),
            examples.sample(config.max_undoing_texts, config.seed),
            progress,
        )
        files.write_json(path, asdict(found))
    kept = json.loads(path.read_text(encoding="utf-8"))
    return TypeAdapter(Undoing).validate_python(kept)


def _path(night: Night, key: str) -> Path:
    """Return the file that holds the result for these weights, these texts and this code."""
    contents = []
    for node in (night.plan.baseline, key):
        manifest = store.manifest(night.workspace, node)
        assert manifest is not None
        contents.append(manifest.content)
    material = {
        "contents": contents,
        "data": night.ground.data_pointers["prepared"]["md5"],
        "texts": night.settings.evaluation.max_undoing_texts,
        "seed": night.settings.evaluation.seed,
        "machine": machine(),  # sums differ in their last digits, and rounding makes more of it
        "code": code_hash("tasks.undoing"),
    }
    return night.workspace.cache / "undoings" / f"{files.key(material)}.json"
