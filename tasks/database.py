"""The project's own database: what must be exclusive or ordered, also across machines.

SQLite under the state folder, or what `NIGHTPRESS_DATABASE_URL` names. Nothing in it that could be
rebuilt from manifests.
"""

import os
from functools import cache
from typing import Any

import sqlalchemy as sa

from tasks.errors import StoreError
from tasks.workspace import Workspace

URL_VARIABLE = "NIGHTPRESS_DATABASE_URL"
metadata = sa.MetaData()

claims = sa.Table(
    "claims",
    metadata,
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("owner", sa.String(128)),  # None: released
    sa.Column("fence", sa.Integer, nullable=False),  # grows with every taking
    sa.Column("expires", sa.Float, nullable=False),  # seconds since the epoch
)

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("key", sa.String(128), nullable=False, index=True),
    sa.Column("event", sa.String(32), nullable=False),  # started, published, discarded, failed
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
)

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("model", sa.String(250), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),  # from 1
    sa.Column("previous", sa.String(64), nullable=False),  # the hash of the entry before
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("entry", sa.Text, nullable=False),  # JSON, of which `hash` is the SHA-256
    sa.UniqueConstraint("model", "previous"),  # two writers cannot both follow one entry
)


def engine(workspace: Workspace) -> sa.Engine:
    """Return the engine, tables made.

    Raises StoreError where the database cannot be opened.
    """
    workspace.state.mkdir(parents=True, exist_ok=True)
    url = os.environ.get(URL_VARIABLE) or f"sqlite:///{workspace.state}/nightpress.db"
    return _engine(url, os.getpid())


@cache
def _engine(url: str, pid: int) -> sa.Engine:
    # the pid is part of the cache's key: a connection must not be shared across a fork
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # no cause: it may hold the password
        raise StoreError(
            f"{URL_VARIABLE} is not a database's address, such as sqlite:////folder/file.db; "
            "mend it, or unset it for the database under .nightpress"
        ) from None
    try:
        made = sa.create_engine(parsed, pool_pre_ping=True)
        if made.dialect.name == "sqlite":
            sa.event.listen(made, "connect", _configure_sqlite)
        _make_tables(made)
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        safe = parsed.render_as_string(hide_password=True)
        line = str(error).splitlines()[0]
        if isinstance(error, ImportError):
            line += f"; install its driver, or unset {URL_VARIABLE}"
        raise StoreError(f"the database {safe} cannot be opened: {line}") from error
    return made


def _make_tables(made: sa.Engine) -> None:
    try:
        with made.begin() as connection:
            metadata.create_all(connection)
    except sa.exc.SQLAlchemyError:
        # two who come first at once both see no tables, and one of them makes them
        with made.begin() as connection:
            metadata.create_all(connection)


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA busy_timeout=60000")
    connection.execute("PRAGMA synchronous=FULL")
