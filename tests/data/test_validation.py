"""The gate passes good data and names each fault: expectation, count, rows."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tasks.data import accepted, prepared
from tasks.data.config import ValidationConfig
from tasks.data.validation import Failure, Validation, validate
from tasks.errors import StoreError
from tests.data import prepared_data

CONFIG = ValidationConfig()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepared_data.good(tmp_path / "prepared")


def judge(folder: Path, config: ValidationConfig = CONFIG, night: Path | None = None) -> Validation:
    return validate(folder, config, night, folder.parent / "docs")


def failures(found: Validation) -> dict[tuple[str, str], Failure]:
    assert found.passed is (not found.failures)
    return {(failure.split, failure.name): failure for failure in found.failures}


def change(folder: Path, split: str, work: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    frame = prepared.read(folder, split)
    changed = work(frame)
    prepared_data.put(folder, split, frame if changed is None else changed)


def set_cells(
    column: str, values: list[str | None], first: int = 0
) -> Callable[[pd.DataFrame], None]:
    def work(frame: pd.DataFrame) -> None:
        frame.loc[first : first + len(values) - 1, column] = values

    return work


def test_good_data_pass_in_silence_and_every_split_is_looked_at(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in folder.parent.iterdir())
    found = judge(folder)
    assert found.passed, found.failures
    assert {check.split for check in found.checks} >= {*prepared.COLUMNS, "all", "train, test"}
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([*before, "docs"])


ROW_FAULTS = {
    "null label": ("train", "label", [None, None], "is missing"),
    "empty text": ("test", "text", ["", " \t", "\u00a0\u2003"], "empty or blank"),
    "replacement characters": ("validation", "text", ["caf\ufffd"], "U+FFFD"),
    "long text": ("train", "text", ["x" * 20_001], "longer than 20,000"),
    "label set": ("slices", "label", ["neutral", "Positive", "1"], "none of negative, positive"),
    "form of id": ("transfer", "id", ["../../etc/passwd"], "16 hexadecimal"),
    "duplicate id": ("train", "id", ["0123456789abcdef"] * 3, "more than once"),
    "duplicate text": ("train", "text", ["Twice the same."] * 2, "more than once"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    """Every one of `ROW_FAULTS` in rows of its own of one data set."""
    folder = prepared_data.good(tmp_path_factory.mktemp("faulty") / "prepared")
    first = 0
    for split, column, values, _ in ROW_FAULTS.values():
        change(folder, split, set_cells(column, values, first))
        first += len(values)
    return judge(folder)


@pytest.mark.parametrize("name", ROW_FAULTS)
def test_a_fault_in_rows_is_named_with_its_count_and_rows(faulty: Validation, name: str) -> None:
    split, column, values, said = ROW_FAULTS[name]
    failed = failures(faulty)
    assert set(failed) == {(fault[0], name) for name, fault in ROW_FAULTS.items()}
    failure = failed[split, name]
    assert failure.count == len(values)
    assert [row[column] for row in failure.rows] == [v and v[:300] for v in values]
    assert failure.message.startswith(f"{split}: ")
    assert said in failure.message
    assert re.search(rf" in {len(values)} of \d+ rows \({failure.expectation}", failure.message)
    assert "\n" not in failure.message


def test_at_most_twenty_rows_are_shown_and_all_are_counted(folder: Path) -> None:
    change(folder, "train", set_cells("label", ["neutral"] * 50))
    failure = failures(judge(folder))["train", "label set"]
    assert failure.count == 50
    assert len(failure.rows) == 20
    assert set(failure.rows[0]) == {"id", "text", "label"}


def test_some_replacement_characters_may_be_allowed(folder: Path) -> None:
    change(folder, "train", set_cells("text", ["caf\ufffd"]))
    assert judge(folder, ValidationConfig(max_replacement_share=0.01)).passed


def test_short_texts_are_named_where_a_length_is_asked(folder: Path) -> None:
    change(folder, "train", set_cells("text", ["Bad.", "Good"]))
    failed = failures(judge(folder, ValidationConfig(min_characters=5)))
    assert failed["train", "short text"].count == 2


def test_columns_and_types_come_first_and_alone(folder: Path) -> None:
    change(folder, "test", lambda frame: frame.drop(columns="label").assign(stars=5))
    change(folder, "train", lambda frame: frame.assign(label=range(len(frame))))
    failed = failures(judge(folder))
    assert set(failed) == {
        ("test", "columns"),
        ("train", "type of label"),
    }
    assert "id, text, stars where id, text, label are expected" in failed["test", "columns"].message
    assert "`label` holds int64" in failed["train", "type of label"].message
    assert (folder.parent / "docs" / "index.html").is_file()


def test_a_column_of_nothing_but_nulls_is_told_as_nulls(folder: Path) -> None:
    change(folder, "slices", lambda frame: frame.assign(label=None))
    failed = failures(judge(folder))
    assert failed["slices", "null label"].count == len(prepared.read(folder, "slices"))


def test_a_split_without_texts_is_told_as_nulls(folder: Path, tmp_path: Path) -> None:
    accepted.record(folder, tmp_path / "accepted")
    change(folder, "train", lambda frame: frame.assign(text=None))
    failed = failures(judge(folder, night=tmp_path / "accepted"))
    assert failed["train", "null text"].count == len(prepared.read(folder, "train"))


def test_labels_of_any_form_can_be_told(folder: Path) -> None:
    odd = ["{0}", "$PARAMETER", *(f"label {number}" for number in range(20))]
    facts = folder / prepared.FACTS
    facts.write_text(json.dumps({"labels": [*prepared_data.LABELS, *odd]}), encoding="utf-8")
    change(folder, "train", set_cells("label", ["{observed}"]))
    failed = failures(judge(folder))
    assert "{0}, $PARAMETER, label 0, " in failed["train", "label set"].message
    assert ", …" in failed["train", "label set"].message
    assert "{0}" in failed["train", "labels that occur"].message


def test_a_label_that_no_training_row_has_is_named(folder: Path) -> None:
    facts = folder / prepared.FACTS
    facts.write_text(json.dumps({"labels": [*prepared_data.LABELS, "neutral"]}), encoding="utf-8")
    failed = failures(judge(folder))
    assert "no row has the label neutral" in failed["train", "labels that occur"].message
    rarest = failed["train", "share of the rarest label"]
    assert rarest.rows[0] == {"label": "neutral", "rows": 0, "share": 0.0}
    assert "is 0 where at least 0.02 is allowed" in rarest.message
    assert "validation.min_class_share" in rarest.message


def test_too_few_rows_are_named(folder: Path) -> None:
    change(folder, "train", lambda frame: frame.head(40))
    change(folder, "test", lambda frame: frame.head(0))
    failed = failures(judge(folder))
    assert "40 rows where at least 100" in failed["train", "number of rows"].message
    assert "0 rows where at least 1 " in failed["test", "number of rows"].message


def test_splits_of_different_balance_are_named(folder: Path) -> None:
    change(folder, "test", lambda frame: frame.assign(label="positive"))
    failed = failures(judge(folder))
    assert set(failed) == {
        ("train, test", "balance between splits"),
        ("validation, test", "balance between splits"),
    }
    row = failed["train, test", "balance between splits"].rows[0]
    assert row["share"] == pytest.approx(0.5, abs=0.01)
    assert row["other"] in (0, 1)


def test_a_difference_that_chance_explains_passes(folder: Path) -> None:
    tolerant = ValidationConfig(max_split_imbalance=0.0)
    change(folder, "test", set_cells("label", ["positive"] * 6))
    assert judge(folder, tolerant).passed


def test_texts_in_two_splits_are_leakage(folder: Path) -> None:
    train = prepared.read(folder, "train").assign(domain="news")
    others = ["validation", "test", "transfer", "slices"]
    for number, other in enumerate(others):
        leaked = train.iloc[2 * number : 2 * number + 2][list(prepared.COLUMNS[other])].copy()
        # of the two, one is given away by its id alone and one by its text alone
        leaked.iloc[0, 0] = f"{number:016x}"
        leaked.iloc[1, 1] += " Indeed."
        change(folder, other, lambda frame, leaked=leaked: pd.concat([frame, leaked]))
    failed = failures(judge(folder))
    failure = failed["all", "leakage"]
    assert failure.count == 16
    pairs = [(row["split"], row["also_in"]) for row in failure.rows]
    assert sorted(pairs) == sorted(
        [("train", other) for other in others] * 2 + [(other, "train") for other in others] * 2
    )


def test_an_accepted_night_passes_again(folder: Path, tmp_path: Path) -> None:
    accepted.record(folder, tmp_path / "accepted")
    found = judge(folder, night=tmp_path / "accepted")
    assert found.passed, found.failures
    assert {"drift of words", "moved texts"} <= {check.name for check in found.checks}


def test_more_texts_of_the_same_kind_pass(folder: Path, tmp_path: Path) -> None:
    accepted.record(folder, tmp_path / "accepted")
    made = prepared_data.sentences(760)
    grown = prepared_data.write(tmp_path / "grown", made[:300] + made[360:], made[300:360])
    found = judge(grown, ValidationConfig(max_changed_labels=1.0), tmp_path / "accepted")
    assert found.passed, found.failures


def test_changed_labels_are_told_with_old_and_new(folder: Path, tmp_path: Path) -> None:
    accepted.record(folder, tmp_path / "accepted")
    old = prepared.read(folder, "train")["label"].head(6).tolist()
    new = [prepared_data.LABELS[label == "negative"] for label in old]
    change(folder, "train", set_cells("label", new))
    failed = failures(judge(folder, night=tmp_path / "accepted"))
    assert set(failed) == {("all", "changed labels")}
    failure = failed["all", "changed labels"]
    assert failure.count == 6
    assert [(row["accepted_label"], row["label"]) for row in failure.rows] == list(
        zip(old, new, strict=True)
    )
    assert judge(folder, ValidationConfig(max_changed_labels=0.05), tmp_path / "accepted").passed


def test_texts_that_moved_between_splits_are_told(folder: Path, tmp_path: Path) -> None:
    accepted.record(folder, tmp_path / "accepted")
    test = prepared.read(folder, "test")
    change(folder, "train", lambda frame: pd.concat([frame, test.head(2)], ignore_index=True))
    change(folder, "test", lambda frame: frame.iloc[2:])
    failed = failures(judge(folder, night=tmp_path / "accepted"))
    failure = failed["all", "moved texts"]
    assert failure.count == 2
    assert {(row["accepted_split"], row["split"]) for row in failure.rows} == {("test", "train")}
    assert judge(folder, ValidationConfig(max_moved_texts=0.05), tmp_path / "accepted").passed


def other_data(tmp_path: Path, texts: list[str]) -> Path:
    return prepared_data.write(tmp_path / "other", texts, prepared_data.sentences(60, 900))


def test_other_words_are_drift(folder: Path, tmp_path: Path) -> None:
    accepted.record(folder, tmp_path / "accepted")
    foreign = [re.sub(r"[aeiou]", "u", text) for text in prepared_data.sentences(300, 400)]
    failed = failures(judge(other_data(tmp_path, foreign), night=tmp_path / "accepted"))
    assert set(failed) == {(split, "drift of words") for split in prepared.SPLITS}
    failure = failed["train", "drift of words"]
    assert failure.rows[0]["times"] >= failure.rows[1]["times"]
    assert "validation.max_oov_drift" in failure.message


def test_other_lengths_are_drift(folder: Path, tmp_path: Path) -> None:
    accepted.record(folder, tmp_path / "accepted")
    longer = [f"{text}, {text.lower()}" for text in prepared_data.sentences(300, 400)]
    failed = failures(judge(other_data(tmp_path, longer), night=tmp_path / "accepted"))
    assert set(failed) == {(split, "drift of lengths") for split in prepared.SPLITS}
    row = failed["train", "drift of lengths"].rows[0]
    assert row["median tonight"] > 1.5 * row["median before"]


def test_another_balance_is_drift(folder: Path, tmp_path: Path) -> None:
    accepted.record(folder, tmp_path / "accepted")
    for split in prepared.SPLITS:
        change(
            folder,
            split,
            lambda frame: frame[(frame["label"] == "positive") | (frame.index % 8 == 0)],
        )
    config = ValidationConfig(max_split_imbalance=1.0, min_rows=50)
    failed = failures(judge(folder, config, tmp_path / "accepted"))
    assert ("train", "drift of balance") in failed


@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_a_broken_file_is_one_line(folder: Path, damage: str) -> None:
    path = folder / "test.parquet"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("id,text,label\n", encoding="utf-8")
    with pytest.raises(StoreError, match=r"test\.parquet cannot be read; delete .*DVC") as error:
        judge(folder)
    assert "\n" not in str(error.value)


def test_a_result_survives_json(folder: Path) -> None:
    change(folder, "train", set_cells("text", ["", "x\ufffd"]))
    found = judge(folder)
    assert Validation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
