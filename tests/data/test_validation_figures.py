"""The gate's own figures against independent ones, and what is remembered of a night."""

import math
import random
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.data import accepted, drift, prepared
from tasks.errors import StoreError
from tests.data import prepared_data

numbers = st.lists(st.integers(0, 30), min_size=1, max_size=40)


@given(numbers, numbers)
def test_the_distance_of_lengths_is_the_largest_gap_of_the_distributions(
    first: list[int], second: list[int]
) -> None:
    found = drift.ks_distance(pd.Series(first), pd.Series(second))
    gaps = [
        abs(sum(a <= x for a in first) / len(first) - sum(b <= x for b in second) / len(second))
        for x in {*first, *second}
    ]
    assert found == pytest.approx(max(gaps))


def test_the_distance_of_lengths_agrees_with_scipy() -> None:
    source = random.Random(3)
    first = pd.Series([source.randint(5, 200) for _ in range(700)])
    second = pd.Series([source.randint(15, 180) for _ in range(300)])
    expected = stats.ks_2samp(first, second).statistic
    assert drift.ks_distance(first, second) == pytest.approx(expected)


def test_chance_exceeds_the_allowed_distance_about_one_time_in_a_thousand() -> None:
    source = random.Random(5)
    allowed = drift.ks_by_chance(200, 100)
    exceeded = 0
    for _ in range(1000):
        first = pd.Series([source.random() for _ in range(200)])
        second = pd.Series([source.random() for _ in range(100)])
        exceeded += drift.ks_distance(first, second) > allowed
    assert exceeded <= 5  # 1 is expected; 6 or more happen 6 times in 10,000
    assert drift.ks_by_chance(200, 100) < 2 * drift.ks_by_chance(800, 400) + 1e-12


def test_the_standard_error_of_a_difference_of_shares_is_what_simulation_shows() -> None:
    source = random.Random(7)

    def share(count: int) -> float:
        return sum(source.random() < 0.3 for _ in range(count)) / count

    differences = pd.Series([share(300) - share(150) for _ in range(2000)])
    assert drift.share_by_chance(0.3, 300, 150) == pytest.approx(3 * differences.std(), rel=0.06)


def test_unknown_words_are_counted_as_they_run() -> None:
    found = accepted.words(["A good film, a GOOD day", "straße STRASSE"])
    assert found == {"a": 2, "good": 2, "film": 1, "day": 1, "strasse": 2}
    assert accepted.unknown_share(found, {"a", "film"}) == pytest.approx(5 / 8)
    assert accepted.unknown_share(accepted.words([]), {"a"}) == 0


def test_a_night_is_remembered_and_replaced(tmp_path: Path) -> None:
    folder = prepared_data.good(tmp_path / "prepared")
    night = tmp_path / "state" / "accepted"
    assert accepted.read(night) is None
    accepted.record(folder, night)
    first = (night / accepted.FILE).read_bytes()
    known = accepted.read(night)
    assert known is not None
    for split in prepared.COLUMNS:
        frame = prepared.read(folder, split)
        rows = known.rows[known.rows["split"] == split]
        assert rows["id"].tolist() == frame["id"].tolist()
        assert rows["characters"].tolist() == [len(text) for text in frame["text"]]
        if "label" in frame:
            assert rows["label"].tolist() == frame["label"].tolist()
    train = set(accepted.words(prepared.read(folder, "train")["text"]))
    assert known.vocabulary == train
    assert not math.isnan(known.unknown_share)

    accepted.record(folder, night)
    assert (night / accepted.FILE).read_bytes() == first
    assert [path.name for path in tmp_path.joinpath("state").iterdir()] == ["accepted"]


@pytest.mark.parametrize("damage", [b"", b"PAR1 not really PAR1", None])
def test_a_broken_memory_is_one_line(tmp_path: Path, damage: bytes | None) -> None:
    folder = prepared_data.good(tmp_path / "prepared")
    night = tmp_path / "accepted"
    accepted.record(folder, night)
    if damage is None:  # a Parquet file, but not one of ours
        (night / accepted.FILE).write_bytes((folder / "train.parquet").read_bytes())
    else:
        (night / accepted.FILE).write_bytes(damage)
    with pytest.raises(StoreError, match=r"accepted\.parquet cannot be read; delete it") as error:
        accepted.read(night)
    assert "\n" not in str(error.value)
