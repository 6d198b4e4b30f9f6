import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tasks.data import archive
from tasks.errors import SourceError


def tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_a_file_in_an_archive_in_an_archive_with_the_top_folders_implied(tmp_path: Path) -> None:
    inner = tar(tmp_path / "set.tar.gz", {"set/a.txt": b"one", "set/b.txt": b"two"})
    outer = tar(
        tmp_path / "pkg-1.0.tar.gz",
        {"pkg-1.0/extra/set.tar.gz": inner.read_bytes(), "pkg-1.0/setup.py": b"raise SystemExit"},
    )
    archive.extract_file(outer, "extra/set.tar.gz/b.txt", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"two"
    archive.extract_file(outer, "pkg-1.0/extra/set.tar.gz/set/a.txt", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"one"


def test_a_missing_member_names_the_nearest(tmp_path: Path) -> None:
    outer = tar(tmp_path / "p.tar.gz", {"p/movies.txt": b"x", "p/tweets.txt": b"y"})
    with pytest.raises(SourceError, match=r"no file movie\.txt; did you mean `movies\.txt`"):
        archive.extract_file(outer, "movie.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_members_that_point_outside_write_nothing_there(tmp_path: Path) -> None:
    outer = tmp_path / "evil.tar"
    with tarfile.open(outer, "w") as file:
        for name in ("m/../../escaped.json", "/abs.json", "m/config.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            file.addfile(info, io.BytesIO(b"{}"))
        link = tarfile.TarInfo("m/vocab.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    target = tmp_path / "deep" / "out"
    target.mkdir(parents=True)
    archive.extract_folder(outer, "m", target, lambda _name: True)
    assert [p.name for p in target.iterdir()] == ["config.json"]
    assert not list(tmp_path.rglob("escaped.json"))
    with pytest.raises(SourceError, match="no file"):
        archive.extract_file(outer, "m/vocab.txt", tmp_path / "x")


def test_what_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1_000_000)
    bombs = [tar(tmp_path / "b.tar.gz", {"a.txt": bytes(2_000_000)})]
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.txt", bytes(2_000_000))
    bombs.append(tmp_path / "b.zip")
    for bomb in bombs:
        with pytest.raises(SourceError, match="refused"):
            archive.extract_file(bomb, "a.txt", tmp_path / "out")
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    many = tar(tmp_path / "many.tar.gz", {f"{n}.txt": b"" for n in range(4)})
    with pytest.raises(SourceError, match="refused"):
        archive.extract_file(many, "1.txt", tmp_path / "out")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "a.tar.xz", "a.whl", "a.tar"])
def test_a_broken_archive_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not an archive at all" * 100)
    with pytest.raises(SourceError, match="not an archive that can be read"):
        archive.extract_file(tmp_path / name, "a.txt", tmp_path / "out")


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    import random

    whole = tar(tmp_path / "a.tar.gz", {"a.txt": random.Random(1).randbytes(100_000)})
    whole.write_bytes(whole.read_bytes()[:50_000])
    with pytest.raises(SourceError, match="not an archive that can be read"):
        archive.extract_file(whole, "a.txt", tmp_path / "out")
