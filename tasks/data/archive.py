"""Reads single files out of archives, with limits: nothing is unpacked by the archive's own paths.

A member is looked up by name and its bytes are written where the caller says, so `..`, absolute
names and links in an archive lead nowhere. Sizes are counted while reading, whatever headers say.
"""

import bz2
import gzip
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Protocol, cast

from tasks.errors import SourceError
from tasks.suggest import nearest

MAX_MEMBERS = 200_000
MAX_BYTES = 8_000_000_000
"""Most that one archive may unpack to."""
_MAX_HEADER = 1 << 24
_CHUNK = 1 << 20
_SUFFIXES = (".zip", ".whl", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_BROKEN = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
    RuntimeError, gzip.BadGzipFile,
)  # fmt: skip


class _TooLarge(Exception):
    """The archive holds more than anyone would put into a data set."""


class _Archive(Protocol):
    def names(self) -> list[str]:
        """Return the regular files."""

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Read one of them."""


def extract_file(archive: Path, path: str, destination: Path) -> None:
    """Write the member `path` to `destination`; a top folder that all members share is implied.

    `path` may go on inside an archive that lies in the archive. Raises SourceError where there is
    no such member, or the archive is broken or too large.
    """
    with _reading(archive), _opened(archive) as members:
        by_path = _by_path(members.names())
        parts = path.split("/")
        for count in range(len(parts), 0, -1):
            name = by_path.get("/".join(parts[:count]))
            if name is None:
                continue
            if count == len(parts):
                _copy(members, name, destination)
                return
            if not name.lower().endswith(_SUFFIXES):
                raise SourceError(f"{archive.name}: {name} is a file, not a folder or an archive")
            with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
                inner = Path(folder) / Path(name).name
                _copy(members, name, inner)
                extract_file(inner, "/".join(parts[count:]), destination)
            return
    raise SourceError(f"{archive.name} holds no file {path}{nearest(path, by_path)}")


def extract_folder(
    archive: Path, path: str, destination: Path, wanted: Callable[[str], bool]
) -> None:
    """Write the files that lie directly in folder `path` and whose names are `wanted`.

    Raises SourceError where there is no such folder, or the archive is broken or too large.
    """
    with _reading(archive), _opened(archive) as members:
        by_path = _by_path(members.names())
        inside = {p: name for p, name in by_path.items() if p.startswith(f"{path}/")}
        if not inside:
            folders = {p.rpartition("/")[0] for p in by_path} - {""}
            raise SourceError(f"{archive.name} holds no folder {path}{nearest(path, folders)}")
        for member_path, name in sorted(inside.items()):
            file = member_path.removeprefix(f"{path}/")
            if "/" not in file and "\\" not in file and wanted(file):
                _copy(members, name, destination / file)


def _by_path(names: list[str]) -> dict[str, str]:
    """Return path → member name; without the top folder too where all members share one."""
    plain = {name.removeprefix("./"): name for name in names}
    tops = {path.partition("/")[0] for path in plain}
    if len(tops) == 1 and all("/" in path for path in plain):
        plain = {path.partition("/")[2]: name for path, name in plain.items()} | plain
    return plain


def _copy(members: _Archive, name: str, destination: Path) -> None:
    copied = 0
    with members.open(name) as source, destination.open("wb") as target:
        while chunk := source.read(_CHUNK):
            copied += len(chunk)
            if copied > MAX_BYTES:
                raise _TooLarge
            target.write(chunk)


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except _TooLarge:
        raise SourceError(
            f"{archive.name} unpacks to more than {MAX_BYTES / 1e9:g} GB or {MAX_MEMBERS:,} files; "
            "it is refused"
        ) from None
    except _BROKEN as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(f"{archive.name} is not an archive that can be read: {first}") from error


@contextmanager
def _opened(archive: Path) -> Iterator[_Archive]:
    name = archive.name.lower()
    if name.endswith((".zip", ".whl")):
        with zipfile.ZipFile(archive) as file:
            yield _Zip(file)
        return
    with _decompressed(archive, name) as plain:
        limited = cast(IO[bytes], _Limited(plain))
        with tarfile.open(fileobj=limited, mode="r:") as tar:
            yield _Tar(tar)


def _decompressed(archive: Path, name: str) -> AbstractContextManager[IO[bytes]]:
    if name.endswith((".gz", ".tgz")):
        return cast(IO[bytes], gzip.open(archive, "rb"))
    if name.endswith((".bz2", ".tbz2")):
        return bz2.open(archive, "rb")
    if name.endswith((".xz", ".txz")):
        return lzma.open(archive, "rb")
    if name.endswith(".tar"):
        return archive.open("rb")
    raise SourceError(f"{archive.name} is not a kind of archive that is read here")


class _Limited:
    """A file in which no one gets further than MAX_BYTES, nor reads a huge header at once."""

    def __init__(self, inner: IO[bytes]) -> None:
        self.inner = inner

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _MAX_HEADER or self.inner.tell() + size > MAX_BYTES:
            raise _TooLarge
        return self.inner.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset > MAX_BYTES:
            raise _TooLarge
        return self.inner.seek(offset)

    def tell(self) -> int:
        return self.inner.tell()


class _Zip:
    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file = file

    def names(self) -> list[str]:
        infos = self.file.infolist()
        if len(infos) > MAX_MEMBERS:
            raise _TooLarge
        return [i.filename for i in infos if not i.is_dir()]

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        return self.file.open(name)


class _Tar:
    def __init__(self, file: tarfile.TarFile) -> None:
        self.file = file
        self.members: dict[str, tarfile.TarInfo] = {}
        for number, member in enumerate(file):
            if number >= MAX_MEMBERS:
                raise _TooLarge
            if member.isreg():
                self.members[member.name] = member

    def names(self) -> list[str]:
        return list(self.members)

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        opened = self.file.extractfile(self.members[name])
        assert opened is not None
        return opened
