"""What passed once need not be looked at again, and keeps its own pages."""

from pathlib import Path

import pytest

from tasks.data import gate, prepared
from tasks.data.config import ValidationConfig
from tasks.data.pipeline import PreparedData
from tasks.data.validation import Validation
from tasks.errors import DataRejected
from tasks.versioning import Pointer
from tasks.workspace import Workspace
from tests.data import prepared_data

CONFIG = ValidationConfig()


def data(folder: Path, md5: str) -> PreparedData:
    pointer = Pointer(md5, 1, 1)
    return PreparedData(folder, pointer, pointer, tuple(prepared_data.LABELS), {}, {})


def passed(workspace: Workspace, given: PreparedData) -> Validation:
    return gate.pass_or_raise(workspace, "reviews", CONFIG, given)


def test_bad_data_between_leave_the_pages_of_good_data_as_they_were(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    good = data(prepared_data.good(tmp_path / "good"), "a")
    bad = data(prepared_data.good(tmp_path / "bad"), "b")
    frame = prepared.read(bad.folder, "train")
    frame.loc[0, "text"] = "broken \ufffd"
    prepared_data.put(bad.folder, "train", frame)

    first = passed(workspace, good)
    page = first.docs.read_text(encoding="utf-8")
    with pytest.raises(DataRejected) as caught:
        passed(workspace, bad)
    assert str(first.docs) not in str(caught.value)
    assert passed(workspace, good) == first  # not looked at again: the seconds are the same
    assert first.docs.read_text(encoding="utf-8") == page


def test_an_accepted_night_passes_again_with_the_pages_it_had(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    good = data(prepared_data.good(tmp_path / "good"), "a")
    first = passed(workspace, good)
    gate.accept(workspace, "reviews", CONFIG, good, first)
    assert passed(workspace, good) == first
    first.docs.unlink()
    again = passed(workspace, good)
    assert again.passed
    assert again.docs.is_file()
