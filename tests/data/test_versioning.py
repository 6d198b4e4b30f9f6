import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from tasks import files, versioning
from tasks.errors import ServiceError, StoreError
from tasks.versioning import Pointer
from tests.data import checkouts


def folder(path: Path, seed: int = 0) -> Path:
    (path / "deep" / "er").mkdir(parents=True)
    (path / "a.txt").write_bytes(b"one" * 1000)
    (path / "b é.bin").write_bytes(bytes([seed % 256]) * 5000)
    (path / "deep" / "er" / "c").write_bytes(b"")
    return path


def with_remote(root: Path, remote: Path) -> None:
    (root / ".dvc" / "config").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {remote}\n"
    )


def test_a_folder_comes_back_byte_for_byte_from_cache_and_from_remote(tmp_path: Path) -> None:
    root = checkouts.make(tmp_path / "root").root
    made = folder(tmp_path / "made")
    before = files.content(made)
    pointer = versioning.add(root, made)
    assert pointer.md5.endswith(".dir")
    assert (pointer.nfiles, pointer.size) == (3, 8000)
    assert Pointer.from_dict(pointer.to_dict()) == pointer
    assert files.content(made) == before
    versioning.restore(root, pointer, tmp_path / "back" / "one")
    assert files.content(tmp_path / "back" / "one") == before

    assert versioning.push(root, [pointer]) is False
    with_remote(root, tmp_path / "remote")
    assert versioning.push(root, [pointer]) is True
    shutil.rmtree(root / ".dvc" / "cache")
    shutil.rmtree(made)
    versioning.restore(root, pointer, tmp_path / "back" / "two")
    assert files.content(tmp_path / "back" / "two") == before
    assert versioning.verify(root, pointer, tmp_path / "back" / "two")
    (tmp_path / "back" / "two" / "a.txt").write_bytes(b"two")
    assert not versioning.verify(root, pointer, tmp_path / "back" / "two")


def test_a_file_has_a_pointer_too(tmp_path: Path) -> None:
    root = checkouts.make(tmp_path / "root").root
    (tmp_path / "x").write_bytes(b"abc")
    pointer = versioning.add(root, tmp_path / "x")
    assert pointer == Pointer("900150983cd24fb0d6963f7d28e17f72", 3, 1)  # RFC 1321's example
    versioning.restore(root, pointer, tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == b"abc"


def test_a_damaged_object_is_never_restored(tmp_path: Path) -> None:
    root = checkouts.make(tmp_path / "root").root
    made = folder(tmp_path / "made")
    pointer = versioning.add(root, made)
    with_remote(root, tmp_path / "remote")
    versioning.push(root, [pointer])
    cached = [p for p in (root / ".dvc" / "cache").rglob("*") if p.is_file()]
    assert len(cached) == 4
    for path in cached:
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    versioning.restore(root, pointer, tmp_path / "back")
    assert files.content(tmp_path / "back") == files.content(made)


def test_what_is_nowhere_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    root = checkouts.make(tmp_path / "root").root
    pointer = versioning.add(root, folder(tmp_path / "made"))
    shutil.rmtree(root / ".dvc" / "cache")
    with pytest.raises(StoreError, match="neither the DVC cache nor a default remote"):
        versioning.restore(root, pointer, tmp_path / "out" / "back")
    assert list((tmp_path / "out").iterdir()) == []
    with_remote(root, tmp_path / "remote")
    with pytest.raises(StoreError, match="cannot be pushed"):
        versioning.push(root, [pointer])
    with pytest.raises(StoreError, match="exists"):
        versioning.restore(root, pointer, tmp_path / "made")


def test_bad_pointers_and_folders_without_dvc_are_refused(tmp_path: Path) -> None:
    for bad in ({"md5": "../../x", "size": 1, "nfiles": 1}, {"md5": "0" * 32}):
        with pytest.raises(StoreError):
            Pointer.from_dict(bad)
    with pytest.raises(ServiceError, match="dvc init"):
        versioning.add(tmp_path, tmp_path)


def _add(root: Path, made: Path) -> None:
    os.environ["DVC_NO_ANALYTICS"] = "1"
    versioning.add(root, made)


def test_several_may_add_the_same_at_once(tmp_path: Path) -> None:
    root = checkouts.make(tmp_path / "root").root
    mades = [folder(tmp_path / f"made{n}") for n in range(3)]
    workers = [multiprocessing.get_context("spawn").Process(target=_add, args=(root, made))
               for made in mades]  # fmt: skip
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    pointer = versioning.add(root, mades[0])
    versioning.restore(root, pointer, tmp_path / "back")
    assert files.content(tmp_path / "back") == files.content(mades[0])
