"""Data sets and models of a Hugging Face hub, or of a local folder in that form."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks import files
from tasks.data.address import HubAddress, HubFolder
from tasks.data.tables import as_text
from tasks.errors import SourceAway, SourceError
from tasks.suggest import nearest

_TIMEOUT_SECONDS = 10
_NO_LABEL = -1  # a ClassLabel column's mark for rows that nobody has labelled


def shown(address: HubAddress | HubFolder) -> str:
    """Return the address's name in messages."""
    if isinstance(address, HubFolder):
        return str(address.path)
    return f"hf://{address.repo}" + (f"@{address.revision}" if address.revision else "")


def resolve(address: HubAddress, kind: str) -> HubAddress:
    """Return the address with the commit that its revision means today.

    `kind` is `dataset` or `model`. Raises SourceError, within seconds, where the hub cannot be
    reached or has no such repository. Offline, and for a commit, the hub is not asked.
    """
    if _is_commit(address.revision) or _offline():
        return address
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        info = HfApi().repo_info(
            address.repo, repo_type=kind, revision=address.revision, timeout=_TIMEOUT_SECONDS
        )
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"{shown(address)}: the hub has no such {kind}, or it is private (`hf auth login`)"
        ) from error
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise SourceAway(_unreachable(address, error)) from error
    return HubAddress(address.repo, info.sha, address.config)


def _is_commit(revision: str | None) -> bool:
    return (
        revision is not None and len(revision) == 40 and not set(revision) - set("0123456789abcdef")
    )


def _offline() -> bool:
    return any(
        os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _unreachable(address: HubAddress, error: Exception) -> str:
    return (
        f"{shown(address)}: the hub cannot be reached ({_first_line(error)}); check the network, "
        "or give a local folder (`hf://./folder`)"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def write_table(
    address: HubAddress | HubFolder,
    split: str | None,
    wanted: tuple[str, ...] | None,
    destination: Path,
) -> None:
    """Write the `wanted` columns (None: all of single values) as a Parquet file of strings.

    A ClassLabel column gives its names; a row that it leaves unlabelled gets a null. Code that
    comes with a data set is never run. Raises SourceError.
    """
    import pyarrow
    from pyarrow import parquet

    with _loaded(address, split, destination.parent) as splits:
        names = _wanted(address, splits[0].column_names, wanted)
        schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
        with parquet.ParquetWriter(destination, schema) as writer:
            for part in splits:
                missing = [name for name in names if name not in part.column_names]
                if missing:
                    raise SourceError(
                        f"{shown(address)}: split `{part.split}` has no column `{missing[0]}`; "
                        "name one split in `source.split`"
                    )
                readers = {name: _reader(part.features[name]) for name in names}
                for batch in part.select_columns(names).iter(batch_size=1000):
                    columns = [_column(address, n, batch[n], readers[n]) for n in names]
                    writer.write_batch(pyarrow.record_batch(columns, schema=schema))


def _wanted(
    address: HubAddress | HubFolder, found: list[str], wanted: tuple[str, ...] | None
) -> list[str]:
    for name in wanted or ():
        if name not in found:
            raise SourceError(f"{shown(address)}: no column `{name}`{nearest(name, found)}")
    return list(dict.fromkeys(wanted)) if wanted is not None else found


def _reader(feature: Any) -> Callable[[Any], str | None]:
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return lambda value: None if value in (None, _NO_LABEL) else str(feature.int2str(value))
    return as_text


def _column(
    address: HubAddress | HubFolder, name: str, values: Any, reader: Callable[[Any], str | None]
) -> Any:
    import pyarrow

    try:
        return pyarrow.array([reader(value) for value in values], pyarrow.string())
    except TypeError as error:
        raise SourceError(
            f"{shown(address)}: column `{name}` holds a {error}, not a single value"
        ) from None


@contextlib.contextmanager
def _loaded(
    address: HubAddress | HubFolder, split: str | None, beside: Path
) -> Iterator[list[Any]]:
    """Give the data set's splits in the order of their names; its cache is gone at the end."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    if isinstance(address, HubFolder) and not address.path.is_dir():
        raise SourceError(f"{address.path} is not a folder")
    where = str(address.path) if isinstance(address, HubFolder) else address.repo
    revision = address.revision if isinstance(address, HubAddress) else None
    # whoever edits a local folder need not count its rows anew in the card
    checks = "no_checks" if isinstance(address, HubFolder) else "basic_checks"
    with files.staged(beside, ".hub") as cache:
        try:
            found = datasets.load_dataset(
                where,
                address.config,
                revision=revision,
                cache_dir=str(cache),
                verification_mode=checks,
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            cause = error.__cause__ or error
            raise SourceError(
                f"{shown(address)}: not a data set that can be read: {_first_line(cause)}"
            ) from error
        if split is not None and split not in found:
            raise SourceError(f"{shown(address)}: no split `{split}`{nearest(split, found)}")
        yield [found[name] for name in ([split] if split else sorted(found))]


def snapshot(address: HubAddress, wanted: Callable[[str], bool], destination: Path) -> None:
    """Copy the wanted files of a model's repository (top folder only) to `destination`.

    Raises SourceError where the hub cannot be reached, or, offline, does not lie in its cache.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if _offline():
            folder = Path(
                snapshot_download(address.repo, revision=address.revision, local_files_only=True)
            )
            names = [p.name for p in folder.iterdir() if wanted(p.name)]
        else:
            listed = HfApi().list_repo_files(address.repo, revision=address.revision)
            names = [name for name in listed if "/" not in name and wanted(name)]
        for name in sorted(names):
            found = hf_hub_download(
                address.repo, name, revision=address.revision, local_files_only=_offline()
            )
            shutil.copyfile(found, destination / name)
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise SourceAway(_unreachable(address, error)) from error
