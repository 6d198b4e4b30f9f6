"""An address that is no database's is told in one line, without the password in it."""

from pathlib import Path

import pytest

from tasks import claims, database
from tasks.errors import StoreError
from tasks.workspace import Workspace


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nowhere", "NIGHTPRESS_DATABASE_URL is not a database's address"),
        ("postgresql://me:hunter2@host:port/db", "is not a database's address"),
        ("mysql://me:hunter2@host/db", "mysql://me:***@host/db cannot be opened: No module named"),
        ("mysql://me:hunter2@host/db", "install its driver, or unset NIGHTPRESS_DATABASE_URL"),
        ("nosuch://me:hunter2@host/db", "nosuch://me:***@host/db cannot be opened: Can't load"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened: (sqlite3.OperationalError)"),
    ],
)
def test_an_address_of_no_database_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, expected: str
) -> None:
    monkeypatch.setenv(database.URL_VARIABLE, url)
    with pytest.raises(StoreError) as caught:
        database.engine(Workspace(tmp_path))
    assert expected in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_database_is_used_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(database.URL_VARIABLE, f"sqlite:///{tmp_path}/other.db")
    assert claims.take(Workspace(tmp_path), "node") is not None
    assert (tmp_path / "other.db").is_file()
    assert not (tmp_path / ".nightpress" / "nightpress.db").exists()
