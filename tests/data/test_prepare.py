import json
import os
from pathlib import Path
from typing import Any

import pytest

from tasks import files
from tasks.data import fetch, normalize, prepare, prepared
from tasks.data.config import PrepareConfig, SourceConfig
from tasks.errors import SourceError
from tests.data.checkouts import sentences, write_csv

HEADER = ("text", "label")


def run(
    root: Path,
    rows: list[tuple[str, ...]],
    header: tuple[str, ...] = HEADER,
    config: PrepareConfig | None = None,
    others: dict[str, list[tuple[str, str]]] | None = None,
    source_others: dict[str, Any] | None = None,
    **source: Any,
) -> Path:
    """Run both stages in `root` and return the prepared folder."""
    root.mkdir(exist_ok=True)
    write_csv(root / "main.csv", rows, header)
    for name, other_rows in (others or {}).items():
        write_csv(root / f"{name}.csv", other_rows, HEADER)
    given: dict[str, Any] = {"address": "main.csv", "others": source_others or {}, **source}
    if "rating" not in given:
        given.setdefault("label", "label")
    for name in others or {}:
        given["others"].setdefault(name, {"address": f"{name}.csv", "label": "label"})
    settings = SourceConfig.model_validate(given)
    here = Path.cwd()
    os.chdir(root)
    try:
        (root / "data").mkdir(exist_ok=True)
        fetch.fetch(root, settings, PrepareConfig())
        prepare.prepare(root, settings, config or PrepareConfig())
    finally:
        os.chdir(here)
    return root / "data" / "prepared"


def test_splits_are_of_the_asked_size_disjoint_and_stable(tmp_path: Path) -> None:
    few = run(tmp_path / "a", list(sentences(1500)))
    many = run(tmp_path / "b", sentences(500, "new") + sentences(1500)[::-1])
    rows = prepared.facts(few)["rows"]
    assert sum(rows[split] for split in prepared.SPLITS) == 1500
    for split, share in (("train", 0.6), ("validation", 0.15), ("test", 0.25)):
        assert abs(rows[split] / 1500 - share) < 0.04
        old, new = (set(prepared.read(folder, split)["id"]) for folder in (few, many))
        assert old <= new, f"a sentence left {split} when data was added"
    assert prepared.facts(few)["labels"] == ["bad", "good"]


def test_the_id_is_the_hash_of_the_key_form_and_decides_the_split(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", list(sentences(200)))
    for split, low, high in (("train", 0, 0.6), ("validation", 0.6, 0.75), ("test", 0.75, 1)):
        frame = prepared.read(folder, split)
        assert list(frame.columns) == ["id", "text", "label"]
        assert list(frame["id"]) == sorted(frame["id"])
        for identity, text in zip(frame["id"], frame["text"], strict=True):
            assert identity == normalize.digest(text).hex()[:16]
            assert low <= int(identity, 16) / 2**64 < high


def test_the_same_input_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    rows = [*sentences(300), ("A  film!", "good"), ("a film", "good")]
    one, two = run(tmp_path / "a", rows), run(tmp_path / "b", rows[::-1])
    for name in (f"{split}.parquet" for split in prepared.COLUMNS):
        assert files.sha256(one / name) == files.sha256(two / name)


def test_duplicates_go_before_the_split_and_contradictions_altogether(tmp_path: Path) -> None:
    extra = [
        ("So good!", "good"), ("so  GOOD", "good"), ("So-so", "good"), ("soso", "bad"),
        ("   ", "bad"), ("no label", " "),
    ]  # fmt: skip
    folder = run(tmp_path / "a", [*sentences(200), *extra])
    assert prepared.facts(folder)["dropped"] == {
        "duplicate text": 1, "empty text": 1, "no label": 1, "same text, different labels": 2
    }  # fmt: skip
    texts = [t for s in prepared.SPLITS for t in prepared.read(folder, s)["text"]]
    assert len(texts) == 201
    assert "So good!" in texts
    assert not {"So-so", "soso", "so GOOD"} & set(texts)


def test_ratings_become_labels_by_sign_and_threshold(tmp_path: Path) -> None:
    values = ["0.5", "-0.5", "0.49", "-0.49", "0", "4", "-4", "nan"]
    rows = [(f"film number {n}", values[n % 8]) for n in range(400)]
    folder = run(tmp_path / "a", rows, ("text", "stars"), rating="stars", threshold=0.5)
    facts = prepared.facts(folder)
    assert facts["labels"] == ["negative", "positive"]
    assert facts["dropped"] == {"no label": 50, "rating below threshold": 150}
    label = {
        t: v for s in prepared.SPLITS for t, v in prepared.read(folder, s)[["text", "label"]].values
    }
    assert label["film number 0"] == "positive"
    assert label["film number 1"] == "negative"


def test_labels_are_mapped_and_numbers_sorted_as_numbers(tmp_path: Path) -> None:
    rows = [(f"film {n}", str(n % 3 * 5 + 1)) for n in range(120)]
    assert prepared.facts(run(tmp_path / "a", rows))["labels"] == ["1", "6", "11"]
    mapped = run(tmp_path / "b", rows, label_map={"11": "6"}, labels=["6", "1"])
    assert prepared.facts(mapped)["labels"] == ["6", "1"]


def test_other_domains_give_transfer_text_and_slices_that_share_nothing(tmp_path: Path) -> None:
    main = sentences(100)
    shop = [
        *sentences(300, "shop"),
        *main[:7],
        ("odd", "unheard of"),
        ("THE PLOT of film 0", "bad"),
    ]
    folder = run(tmp_path / "a", list(main), others={"shop": shop, "web": sentences(50, "shop")})
    transfer, slices = (prepared.read(folder, s) for s in ("transfer", "slices"))
    assert list(transfer.columns) == ["id", "text", "domain"]
    assert abs(len(transfer) / 300 - 0.6) < 0.09
    assert len(transfer) + len(slices) in (300, 301)
    main_ids = {i for s in prepared.SPLITS for i in prepared.read(folder, s)["id"]}
    assert not main_ids & {*transfer["id"], *slices["id"]}
    assert not set(transfer["id"]) & set(slices["id"])
    assert set(slices["domain"]) == {"shop"}
    assert set(slices["label"]) == {"good", "bad"}
    dropped = prepared.facts(folder)["dropped"]
    assert dropped["web: text of the main data or of another domain"] == 50
    assert dropped["shop: label that the main data has not"] == 1


def test_unlabelled_domains_are_transfer_text_altogether(tmp_path: Path) -> None:
    folder = run(
        tmp_path / "a",
        list(sentences(100)),
        others={"web": sentences(50, "web")},
        source_others={"web": {"address": "web.csv"}},
    )
    assert len(prepared.read(folder, "transfer")) == 50
    assert prepared.read(folder, "slices").empty


def test_fewer_rows_keep_the_shares_of_the_splits(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", list(sentences(1000)), config=PrepareConfig(max_rows=300))
    rows = prepared.facts(folder)["rows"]
    assert sum(rows[split] for split in prepared.SPLITS) == 300
    assert 0.5 < rows["train"] / 300 < 0.7
    assert prepared.facts(folder)["dropped"] == {"beyond max_rows": 700}


UNFIT: list[tuple[list[tuple[str, str]], dict[str, Any], str]] = [
    ([(f"film {n}", "good") for n in range(50)], {}, "all rows have one label, `good`"),
    ([], {}, "holds no text"),
    ([("a", ""), ("b", "")], {}, "no row has a usable `label`"),
    (sentences(4), {}, "split is empty|not in training"),
    (sentences(90), {"labels": ["god", "bad"]}, r"csv:3: label `good` .*did you mean `god`"),
    (sentences(90), {"labels": ["good", "bad", "meh"]}, "label `meh` .* has no row in training"),
    ([(f"f {n}", str(n)) for n in range(900)], {}, "900 different values; is it the column"),
    (sentences(90), {"label": None, "rating": "label"}, r"csv:2: `label` holds 'bad', not a num"),
]


@pytest.mark.parametrize(("rows", "source", "message"), UNFIT)
def test_data_that_teaches_nothing_is_refused(
    tmp_path: Path, rows: list[tuple[str, ...]], source: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        run(tmp_path / "a", rows, **source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a" / "data" / "prepared").exists()


def test_a_label_unseen_in_training_is_named(tmp_path: Path) -> None:
    only_test = next(
        text
        for text in (f"rare film {n}" for n in range(999))
        if normalize.share(normalize.digest(text)) > 0.8
    )
    with pytest.raises(SourceError, match="label `odd` occurs in the test split and not in"):
        run(tmp_path / "a", [*sentences(100), (only_test, "odd")])


def test_a_domain_of_foreign_labels_is_refused(tmp_path: Path) -> None:
    foreign = [(f"text {n}", "goood") for n in range(20)]
    with pytest.raises(SourceError, match="did you mean `good`"):
        run(tmp_path / "a", list(sentences(100)), others={"web": foreign})


def test_raw_tells_where_each_table_came_from(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", list(sentences(100)), others={"web": sentences(9, "w")})
    raw = folder.parent / "raw"
    told = json.loads((raw / fetch.SOURCES).read_text())
    assert told["main"]["sha256"] == files.sha256(tmp_path / "a" / "main.csv")
    assert files.sha256(raw / "others" / "web.csv") == told["others"]["web"]["sha256"]
    assert prepared.facts(folder)["sources"]["web"]["size_bytes"] > 0
