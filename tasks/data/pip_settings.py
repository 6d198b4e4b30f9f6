"""Which package index the user's pip is set to: its files and PIP_* variables, asked of pip."""

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# the later overrides the earlier, as in pip itself
_SECTIONS = ("global", "install", "download", ":env:")
_TRUE = ("1", "true", "yes", "on", "t", "y")


@dataclass(frozen=True)
class PipSettings:
    """What decides where pip looks, and whom it believes."""

    index_url: str | None
    """None: pip's own default."""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    no_index: bool = False
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    timeout_seconds: float = 15.0


def read() -> PipSettings:
    """Return the settings of the pip that belongs to this Python."""
    values = _configured()
    timeout = values.get("timeout") or values.get("default-timeout") or "15"
    return PipSettings(
        index_url=values.get("index-url") or None,
        extra_index_urls=tuple(values.get("extra-index-url", "").split()),
        find_links=tuple(values.get("find-links", "").split()),
        trusted_hosts=tuple(values.get("trusted-host", "").split()),
        no_index=values.get("no-index", "").lower() in _TRUE,
        cert=values.get("cert") or None,
        client_cert=values.get("client-cert") or None,
        proxy=values.get("proxy") or None,
        timeout_seconds=float(timeout),
    )


def _configured() -> dict[str, str]:
    """Return option → value: what `pip config list` prints, else the PIP_* variables alone."""
    answer = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(sys.prefix),  # a module beside the user must not be taken for pip
    )
    if answer.returncode != 0:  # an environment without pip
        return _from_environment()
    by_section: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in answer.stdout.splitlines():
        name, equals, value = line.partition("=")
        section, _, option = name.strip().rpartition(".")
        if equals and section in by_section:
            by_section[section][option] = str(ast.literal_eval(value))
    merged: dict[str, str] = {}
    for section in _SECTIONS:
        merged |= by_section[section]
    return merged


def _from_environment() -> dict[str, str]:
    return {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith("PIP_") and value
    }
