import time
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tasks.data import fetch, hub, pipeline, prepared, tables
from tasks.data.address import HubFolder
from tasks.data.config import PrepareConfig, SourceConfig
from tasks.data.inspect import inspect
from tasks.errors import SourceError
from tests.data import checkouts
from tests.data.checkouts import sentences

README = """---
dataset_info:
  config_name: plain_text
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': neg
          '1': pos
  splits:
  - name: train
  - name: test
  - name: unsupervised
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
  - split: test
    path: plain_text/test-*
  - split: unsupervised
    path: plain_text/unsupervised-*
  default: true
---
# Film reviews
"""


def film_reviews(folder: Path) -> Path:
    """Write a data set in the form of a hub's repository, as film reviews often come."""
    (folder / "plain_text").mkdir(parents=True)
    (folder / "README.md").write_text(README)
    parts = {"train": sentences(120, "a"), "test": sentences(60, "b")}
    for split, rows in parts.items():
        write(folder, split, [t for t, _ in rows], [int(label == "good") for _, label in rows])
    write(folder, "unsupervised", [f"nobody said what {n} is" for n in range(40)], [-1] * 40)
    return folder


def write(folder: Path, split: str, texts: list[str], labels: list[int]) -> None:
    table = pyarrow.table({"text": texts, "label": pyarrow.array(labels, pyarrow.int64())})
    parquet.write_table(table, folder / "plain_text" / f"{split}-00000-of-00001.parquet")


def test_a_local_folder_in_hub_form_is_prepared_without_its_unlabelled_split(
    tmp_path: Path,
) -> None:
    workspace = checkouts.make(tmp_path / "root")
    film_reviews(workspace.root / "imdb")
    source = SourceConfig(address="hf://./imdb", label="label")
    made = pipeline.reproduce(workspace, "films", source, PrepareConfig())
    facts = prepared.facts(made.folder)
    assert made.labels == ("neg", "pos")
    assert sum(made.rows.values()) == 180
    assert facts["dropped"] == {"no label": 40}
    write(workspace.root / "imdb", "test", ["another"], [1])
    again = pipeline.reproduce(workspace, "films", source, PrepareConfig())
    assert sum(again.rows.values()) == 121


def test_one_split_and_its_mistakes(tmp_path: Path) -> None:
    folder = film_reviews(tmp_path / "imdb")
    config = SourceConfig(address=f"hf://{folder}", label="label", split="test")
    facts = fetch.fetch_table(config, tmp_path, "out", tmp_path)
    assert facts["format"] == "parquet"
    rows = list(tables.rows(tables.Table(tmp_path / facts["file"], "parquet", "x"), ["label"]))
    assert len(rows) == 60
    assert rows[0][1] == ("neg",)
    for update, message in (
        ({"split": "tset"}, "no split `tset`; did you mean `test`"),
        ({"text": "txt"}, "no column `txt`; did you mean `text`"),
    ):
        with pytest.raises(SourceError, match=message):
            fetch.fetch_table(config.model_copy(update=update), tmp_path, "bad", tmp_path)


def test_csv_and_jsonl_folders_without_a_card(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "a", "label": 1}\n' * 3)
    hub.write_table(HubFolder(tmp_path / "set"), None, None, tmp_path / "o.parquet")
    table = tables.Table(tmp_path / "o.parquet", "parquet", "x")
    assert list(tables.rows(table, ["label", "text"])) == [(n, ("1", "a")) for n in (1, 2, 3)]
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="not a data set that can be read"):
        hub.write_table(HubFolder(tmp_path / "none"), None, None, tmp_path / "n.parquet")


def test_inspection_of_a_folder_in_hub_form(tmp_path: Path) -> None:
    film_reviews(tmp_path / "imdb")
    found = inspect("hf://./imdb", root=tmp_path)
    assert (found.text, found.label, found.format) == ("text", "label", None)
    assert found.label_counts == {"neg": 90, "pos": 90}
    assert found.num_rows == 220


_UNREACHABLE = """
from pathlib import Path
from tasks.data.address import HubAddress
from tasks.data import hub, model
from tasks.errors import SourceError
for ask in (
    lambda: hub.resolve(HubAddress("owner/name"), "dataset"),
    lambda: model.fetch_model("hf://owner/name", Path("data/models").resolve()),
):
    try:
        ask()
    except SourceError as error:
        print(error)
"""


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_hub_that_cannot_be_reached_is_named_within_seconds(tmp_path: Path, offline: str) -> None:
    began = time.monotonic()
    process = checkouts.python(
        tmp_path,
        _UNREACHABLE,
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_OFFLINE=offline,
        HF_HOME=str(tmp_path / "hf"),
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert len(lines) == (1 if offline == "1" else 2)
    for line in lines:
        assert line.startswith("hf://owner/name: the hub cannot be reached")
    assert time.monotonic() - began < 20
