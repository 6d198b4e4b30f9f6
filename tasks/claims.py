"""Who presses what: a row with a lease, renewed by heartbeat, taken over once it lapses.

The fence grows with every taking; a publication is refused to one whose fence is no longer the
row's, however long he slept (Kleppmann 2016, "How to do distributed locking").
"""

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import sqlalchemy as sa

from tasks import database
from tasks.errors import ClaimLost
from tasks.workspace import Workspace

LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class Claim:
    """The right to publish `key`, as long as the row still carries this fence."""

    key: str
    owner: str
    fence: int


def owner_name() -> str:
    """Return `host/pid/start`, which names this process and no later one of the same number."""
    return f"{socket.gethostname()}/{os.getpid()}/{psutil.Process().create_time():.0f}"


def staging(workspace: Workspace) -> Path:
    """Return this process's own folder for unfinished things; `sweep` knows whose it is."""
    return workspace.staging / owner_name().replace("/", "@")


def sweep(workspace: Workspace) -> int:
    """Remove what processes of this machine that have ended left unfinished; return how many."""
    left = [f for f in workspace.staging.glob("*@*@*") if is_gone(f.name.replace("@", "/"))]
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return len(left)


def is_gone(owner: str) -> bool:
    """Tell whether `owner` was a process of this machine that has ended."""
    host, pid, start = owner.rsplit("/", 2)
    if host != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(start)) > 1.5
    except psutil.NoSuchProcess:
        return True


def take(workspace: Workspace, key: str, lease: float = LEASE_SECONDS) -> Claim | None:
    """Claim `key`; None while another holds it."""
    table, now, owner = database.claims, time.time(), owner_name()
    with database.engine(workspace).begin() as connection:
        row = connection.execute(sa.select(table).where(table.c.key == key)).first()
        if row is None:
            with contextlib.suppress(sa.exc.IntegrityError):
                # someone else may insert between the two statements: then he has it
                with connection.begin_nested():
                    connection.execute(
                        table.insert().values(key=key, owner=owner, fence=1, expires=now + lease)
                    )
                return Claim(key, owner, 1)
            return None
        if row.owner is not None and row.expires > now and not is_gone(row.owner):
            return None
        taken = connection.execute(
            table.update()
            .where(table.c.key == key, table.c.fence == row.fence)
            .values(owner=owner, fence=row.fence + 1, expires=now + lease)
        )
        return Claim(key, owner, row.fence + 1) if taken.rowcount == 1 else None


def renew(workspace: Workspace, claim: Claim, lease: float = LEASE_SECONDS) -> bool:
    """Extend the lease; False where the claim was taken over."""
    return _update(workspace, claim, expires=time.time() + lease)


def release(workspace: Workspace, claim: Claim) -> None:
    """Give the key back; the fence stays, so that it only grows."""
    _update(workspace, claim, owner=None, expires=0.0)


def check(workspace: Workspace, claim: Claim) -> None:
    """Raise ClaimLost unless the claim is still its owner's."""
    if not renew(workspace, claim):
        raise ClaimLost(
            f"another worker took over {claim.key[:12]}; what was pressed here is discarded"
        )


def require(workspace: Workspace, key: str) -> None:
    """Raise ClaimLost where another process has taken over what this one had claimed."""
    table = database.claims
    with database.engine(workspace).begin() as connection:
        row = connection.execute(sa.select(table).where(table.c.key == key)).first()
    if row is not None and row.owner not in (None, owner_name()):
        raise ClaimLost(
            f"{row.owner} has taken over {key}, whose lease lapsed here (was this machine "
            "suspended?); its run goes on, this one ends"
        )


def _update(workspace: Workspace, claim: Claim, **values: object) -> bool:
    table = database.claims
    with database.engine(workspace).begin() as connection:
        done = connection.execute(
            table.update()
            .where(
                table.c.key == claim.key,
                table.c.fence == claim.fence,
                table.c.owner == claim.owner,
            )
            .values(**values)
        )
        return done.rowcount == 1


@contextlib.contextmanager
def held(workspace: Workspace, claim: Claim, lease: float = LEASE_SECONDS) -> Iterator[None]:
    """Renew the claim in the background while the body runs, then release it."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(lease / 3):
            with contextlib.suppress(sa.exc.OperationalError):
                # a busy database: the next beat tries again, publication checks the fence anyway
                if not renew(workspace, claim, lease):
                    return

    heart = threading.Thread(target=beat, name=f"lease of {claim.key[:12]}", daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        release(workspace, claim)


def stale(workspace: Workspace) -> list[Claim]:
    """Return claims whose lease lapsed or whose owner has ended, still not released."""
    table = database.claims
    with database.engine(workspace).begin() as connection:
        rows = connection.execute(sa.select(table).where(table.c.owner.is_not(None))).all()
    now = time.time()
    return [Claim(r.key, r.owner, r.fence) for r in rows if r.expires < now or is_gone(r.owner)]
