"""Databases that restart, hang up, end a transaction, are full, locked or read-only."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import sqlalchemy.exc as exc
from sqlalchemy import Connection, Update, event, insert, make_url, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from database.context import DbContext as AnyContext
from database.models import UserDb
from tests.conftest import MYSQL_ASYNC, SERVERS_ASYNC, SQLITE_ASYNC, SYNC_DRIVERS
from tests.models import a_family, a_user
from tests.servers import Server
from tests.stacks.helpers import Db, Users, names, read

on_a_server = pytest.mark.parametrize("url", SERVERS_ASYNC, indirect=True)
on_mysql = pytest.mark.parametrize("url", MYSQL_ASYNC, indirect=True)
on_sqlite = pytest.mark.parametrize("url", SQLITE_ASYNC, indirect=True)


@pytest.fixture
def server(url: str) -> Iterator[Connection]:
    """Yield a connection to look at the database and to disturb it."""
    other = make_url(url).set(drivername=SYNC_DRIVERS[url.partition("+")[0]])
    context = AnyContext(other, isolation_level="AUTOCOMMIT")
    with context, context.engine.connect() as connection:
        yield connection


def own_id(session: Any) -> Any:
    """Return the number that the server gave to the connection of a session."""
    is_postgresql = session.connection().dialect.name == "postgresql"
    own = "pg_backend_pid()" if is_postgresql else "CONNECTION_ID()"
    return session.scalar(text(f"SELECT {own}"))


def hang_up(server: Connection, id: int) -> None:
    """Close a connection from the server's side, and wait until it is closed."""
    if server.dialect.name == "postgresql":
        server.scalar(text(f"SELECT pg_terminate_backend({id}, 5000)"))
    else:
        server.execute(text(f"KILL {id}"))
        processes = text("SELECT id FROM information_schema.processlist")
        while id in server.scalars(processes):
            time.sleep(0.01)


@on_a_server
async def test_the_server_may_restart_when_idle(db: Db, request: Any) -> None:
    name = "postgres" if db.engine.dialect.name == "postgresql" else "mariadb"
    running: Server = request.getfixturevalue(name)
    users = Users(db)
    assert await users.get_page() == []
    await asyncio.sleep(1.1)
    running.stop()
    running.start()
    await users.create(a_user())
    assert await names(db) == ["User 1"]


@on_a_server
async def test_one_hang_up_renews_all_connections(db: Db, server: Connection) -> None:
    async with db.read_session() as one, db.read_session() as two:
        ids = [await session.run_sync(own_id) for session in (one, two)]
    for id in ids:
        hang_up(server, id)
    with pytest.raises(exc.DBAPIError):
        await names(db)
    assert await names(db) == []


@on_a_server
async def test_a_caught_hang_up_stores_nothing(db: Db, server: Connection) -> None:
    with pytest.raises(exc.PendingRollbackError):
        async with db.transaction() as session:
            await Users(session).create(a_user(1))
            hang_up(server, await session.run_sync(own_id))
            with suppress(exc.DBAPIError):
                await session.execute(select(UserDb))
            session.add(a_user(2))
    assert await names(db) == []


@on_a_server
async def test_a_hang_up_does_not_hide_an_error(db: Db, server: Connection) -> None:
    user = await Users(db).create(a_user())
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as session:
            session.add(user)
            hang_up(server, await session.run_sync(own_id))
            raise ZeroDivisionError
    with pytest.raises(exc.InvalidRequestError, match="read it again"):
        await Users(db).update(user)


@on_a_server
async def test_a_hang_up_before_commit_is_retried(db: Db, server: Connection) -> None:
    async def work(session: AsyncSession) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            await Users(session).create(a_user(3))
            hang_up(server, await session.run_sync(own_id))
        session.add(a_user(len(attempts)))

    attempts: list[int] = []
    await db.run_transaction(work)
    assert await names(db) == ["User 2"]


@on_a_server
async def test_a_hang_up_during_commit_is_raised(db: Db, server: Connection) -> None:
    async def work(session: AsyncSession) -> None:
        ids.append(await session.run_sync(own_id))
        session.add(a_user())

    @event.listens_for(db.engine.sync_engine, "commit")
    def interrupt(_connection: Connection) -> None:
        hang_up(server, ids[-1])

    ids: list[int] = []
    with pytest.raises(exc.DBAPIError):
        await db.run_transaction(work)
    assert len(ids) == 1


type Deadlock = Callable[[UserDb, UserDb], None]


def rename(user: UserDb, name: str) -> Update:
    return update(UserDb).where(UserDb.id == user.id).values(name=name)


@pytest.fixture
def deadlock(server: Connection) -> Iterator[Deadlock]:
    """Yield a function that makes the next statement of a transaction a deadlock.

    The transaction has locked the first row, and its next statement is for the second.
    """
    waiting = "information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    if server.dialect.name == "postgresql":
        waiting = "pg_locks WHERE NOT granted"

    def rename_and_roll_back(user: UserDb) -> None:
        other.execute(rename(user, "theirs"))
        other.rollback()

    def provoke(first: UserDb, second: UserDb) -> None:
        if server.dialect.name == "postgresql":
            other.execute(text("SET deadlock_timeout = '1h'"))
        many = [{"name": "theirs", "email": str(n)} for n in range(50)]
        other.execute(insert(UserDb), many)  # MySQL gives up the smaller transaction
        other.execute(rename(second, "theirs"))
        thread.submit(rename_and_roll_back, first)
        while not server.scalar(text(f"SELECT count(*) FROM {waiting}")):
            time.sleep(0.2)  # MariaDB repeats its answer for 0.1 seconds

    with server.engine.connect() as other, ThreadPoolExecutor(1) as thread:
        other.execution_options(isolation_level="READ COMMITTED")
        yield provoke


@on_a_server
async def test_a_deadlock_is_retried(db: Db, users: Users, deadlock: Deadlock) -> None:
    async def work(session: AsyncSession) -> None:
        attempts.append(1)
        session.add(a_user(3))
        await session.execute(rename(one, "mine"))
        if len(attempts) == 1:
            deadlock(one, two)
        async with session.begin_nested():
            await session.execute(rename(two, "mine"))

    attempts: list[int] = []
    one, two = await users.create_many([a_user(1), a_user(2)])
    await db.run_transaction(work)
    assert len(attempts) == 2
    assert await names(db) == ["mine", "mine", "User 3"]


@on_mysql
@pytest.mark.parametrize("place", ["in a savepoint", "outside"])
async def test_a_deadlock_that_is_caught_stores_nothing_on_mysql(
    db: Db, users: Users, deadlock: Deadlock, place: str
) -> None:
    """MySQL has rolled back the whole transaction, not the savepoint alone."""
    one, two = await users.create_many([a_user(1), a_user(2)])
    with pytest.raises((exc.DBAPIError, exc.InvalidRequestError)):
        async with db.transaction() as session:
            await session.execute(rename(one, "mine"))
            deadlock(one, two)
            with suppress(exc.DBAPIError):
                if place == "outside":
                    await session.execute(rename(two, "mine"))
                async with session.begin_nested():
                    await session.execute(rename(two, "mine"))
            session.add(a_user(3))
    assert await names(db) == ["User 1", "User 2"]


@on_mysql
@pytest.mark.parametrize("sql", ["ROLLBACK", "SELECT no_such_function()"])
async def test_a_savepoint_that_the_server_has_ended(db: Db, sql: str) -> None:
    """A function that is missing has the same error number. It ends nothing."""
    told = pytest.raises(exc.PendingRollbackError)
    with told if sql == "ROLLBACK" else nullcontext():
        async with db.transaction() as session:
            with suppress(exc.DBAPIError):
                async with session.begin_nested():
                    await session.execute(text(sql))
            session.add(a_user())
    assert await names(db) == ([] if sql == "ROLLBACK" else ["User 1"])


@on_mysql
async def test_a_caught_snapshot_conflict_stores_nothing(db: Db, users: Users) -> None:
    """MariaDB ends the transaction. Later statements would be stored alone."""
    user = await users.create(a_user(1))
    with pytest.raises(exc.PendingRollbackError):
        async with db.transaction() as session:
            await session.execute(text("SET innodb_snapshot_isolation = 1"))
            await session.execute(select(UserDb))
            async with db.engine.begin() as connection:
                await connection.execute(rename(user, "theirs"))
            with suppress(exc.DBAPIError):
                await session.execute(rename(user, "mine"))
            session.add(a_user(2))
    assert await names(db) == ["theirs"]


FILL = "INSERT INTO users (name, email, created_at) VALUES ('x', :email, '2026-01-01')"


@on_sqlite
@pytest.mark.parametrize("caught", [False, True])
async def test_a_full_disk_stores_nothing(url: str, caught: bool) -> None:
    """SQLite ends the transaction. Later statements would be stored alone."""
    async with Db(url, pool_size=1, max_overflow=0) as db:
        with pytest.raises((exc.OperationalError, exc.PendingRollbackError)) as told:
            async with db.transaction() as session:
                await Users(session).create(a_user(1))
                await session.execute(text("PRAGMA max_page_count = 1"))
                with suppress(*[exc.DBAPIError] * caught):
                    for n in range(1000):
                        await session.execute(text(FILL), {"email": f"{n:0200}"})
                session.add(a_user(2))
        assert caught or "full" in str(told.value)
        assert await names(db) == []


@on_sqlite
async def test_a_transaction_locks_the_file_first(db: Db, users: Users) -> None:
    """Without BEGIN IMMEDIATE its write fails at once: "database is locked"."""
    user = await users.create(a_user(1))
    impatient = Db(db.engine.url, connect_args={"timeout": 0.01})
    async with impatient, db.transaction() as session:
        found = await read(Users(session), user.id)
        with pytest.raises(exc.OperationalError, match="locked"):
            await Users(impatient).create(a_user(2))
        with pytest.raises(exc.OperationalError, match="locked"):
            async with impatient.transaction():
                pass
        assert await names(impatient) == ["User 1"], "readers do not wait"
        found.name = "changed"
    assert await names(db) == ["changed"]


@on_sqlite
async def test_an_update_of_children_locks_the_file(db: Db, users: Users) -> None:
    single, parent = await users.create_many([a_user(1), a_family(2)])
    statements: list[str] = []

    @event.listens_for(db.engine.sync_engine, "before_cursor_execute")
    def note(*args: Any) -> None:
        statements.append(args[2].split(" SET ")[0])

    single.name = "changed"
    await users.update(single)
    parent.salaries.pop()
    await users.update(parent)
    assert statements[:3] == ["UPDATE users", "COMMIT", "BEGIN IMMEDIATE"]


@on_sqlite
async def test_a_file_that_is_read_only_can_be_read(db: Db, users: Users) -> None:
    await users.create(a_user(1))
    await db.dispose()
    url = f"{db.engine.url.drivername}:///file:{db.engine.url.database}"
    async with Db(f"{url}?mode=ro&uri=true") as other:
        assert await names(other) == ["User 1"]
        with pytest.raises(exc.OperationalError, match="readonly"):
            await Users(other).create(a_user(2))
