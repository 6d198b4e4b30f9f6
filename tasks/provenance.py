"""Which code made a thing: the revision, and the patch of what was not committed."""

import subprocess
from functools import cache
from pathlib import Path

_CODE = ("flows", "tasks", "dvc.yaml", "pyproject.toml")
_LARGEST_PATCH = 1_000_000


@cache
def code(root: Path) -> dict[str, str]:
    """Return `revision` and `patch` of the checkout at `root`.

    Both are empty where it is not a git checkout; `patch` covers the code alone, so that nothing
    else that lies in the folder gets into a manifest.
    """
    revision = _git(root, "rev-parse", "HEAD").strip()
    patch = _git(root, "diff", "HEAD", "--", *_CODE)
    for name in _git(root, "ls-files", "--others", "--exclude-standard", "--", *_CODE).splitlines():
        patch += _git(root, "diff", "--no-index", "--", "/dev/null", name)
    if len(patch) > _LARGEST_PATCH:
        patch = f"(left out: {len(patch)} characters; commit before a night that matters)"
    return {"revision": revision, "patch": patch}


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # `diff --no-index` exits with 1 where there is a difference
    return done.stdout if done.returncode in (0, 1) else ""
