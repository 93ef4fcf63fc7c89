"""What a context accepts, refuses and passes on."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, exc, insert, text

from tests.conftest import DRIVERS_ASYNC, SERVERS_ASYNC
from tests.models import a_user
from tests.stacks.helpers import Db, Users, names

IN_MEMORY = ["", "/", "/:memory:", "/file::memory:?uri=1", "/file:x?mode=memory&uri=1"]
POSTGRES_ASYNC = [driver for driver in DRIVERS_ASYNC if "postgresql" in driver]


@pytest.mark.parametrize("url", POSTGRES_ASYNC, indirect=True)
async def test_reads_use_the_isolation_level_and_the_schema(url: str) -> None:
    level: dict[str, Any] = {"isolation_level": "REPEATABLE READ"}
    for options in (level, {"execution_options": level}):
        async with Db(url, **options) as db, db.read_session() as session:
            found = await session.scalar(text("SHOW transaction_isolation"))
            assert found == "repeatable read"
            # Row-level security needs a setting that lasts as long as the transaction.
            await session.execute(text("SELECT set_config('app.tenant', 'one', true)"))
            tenant = await session.scalar(text("SELECT current_setting('app.tenant')"))
            assert tenant == "one"
    schema = {"schema_translate_map": {None: "nowhere"}}
    async with Db(url, execution_options=schema) as db:
        with pytest.raises(Exception, match="nowhere"):
            await Users(db).get_page()


async def test_a_transaction_uses_the_options_of_its_connection(db: Db) -> None:
    schema: Any = {"schema_translate_map": {None: "nowhere"}}
    with pytest.raises(exc.DBAPIError, match="nowhere"):
        async with db.transaction() as session:
            await session.connection(execution_options=schema)
            await Users(session).create(a_user())


@pytest.mark.parametrize("driver", SERVERS_ASYNC)
def test_accepts_an_at_sign_in_the_query_of_a_url(driver: str) -> None:
    db = Db(f"{driver}://user:p%40ss@host/name?application_name=api@host")
    assert db.engine.url.query == {"application_name": "api@host"}
    assert "p@ss" not in repr(db.engine)


@pytest.mark.parametrize("name", IN_MEMORY)
def test_refuses_a_sqlite_database_in_memory(name: str) -> None:
    with pytest.raises(exc.ArgumentError, match="use a file"):
        Db(f"sqlite+aiosqlite://{name}")


async def test_options_replace_the_defaults(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new.db"
    async with Db(url, connect_args={"timeout": 7}, hide_parameters=False) as db:
        assert not db.engine.sync_engine.hide_parameters
        async with db.read_session() as session:
            assert await session.scalar(text("PRAGMA busy_timeout")) == 7000


async def test_sqlite_checks_foreign_keys_and_writes_ahead(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new.db"
    async with Db(url) as db, db.read_session() as one, db.read_session() as two:
        for session in (one, two):
            assert await session.scalar(text("PRAGMA foreign_keys")) == 1
            assert await session.scalar(text("PRAGMA journal_mode")) == "wal"


async def test_a_new_file_that_is_locked_can_be_opened(tmp_path: Path) -> None:
    """If several processes open it at once, they can't all set the write-ahead log."""
    file = tmp_path / "new.db"
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        impatient = Db(f"sqlite+aiosqlite:///{file}", connect_args={"timeout": 0})
        async with impatient as db, db.read_session() as session:
            assert await session.scalar(text("SELECT 1")) == 1


async def test_autocommit_is_refused_on_sqlite(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new.db"
    level: Any = {"isolation_level": "AUTOCOMMIT"}
    for options in (level, {"execution_options": level}):
        async with Db(url, **options) as db:
            with pytest.raises(exc.InvalidRequestError, match="AUTOCOMMIT"):
                await Users(db).get_page()


@pytest.mark.parametrize("name", ["begin", "engine_connect"])
async def test_listeners_of_other_code_may_run_statements(db: Db, name: str) -> None:
    def use(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))

    event.listen(db.engine.sync_engine, name, use, insert=True)
    for n in range(2):
        await Users(db).create(a_user(n))
    assert await names(db) == ["User 0", "User 1"]


@pytest.mark.parametrize("url", POSTGRES_ASYNC, indirect=True)
async def test_an_error_of_the_first_connection_is_raised(url: str) -> None:
    def fail(connection: Any, _record: object) -> None:
        with suppress(Exception):
            connection.cursor().execute("SELECT 1/0")

    async with Db(url) as db:
        event.listen(db.engine.sync_engine, "connect", fail, insert=True)
        with pytest.raises(exc.DBAPIError, match="aborted"):
            await Users(db).get_page()


async def test_a_connection_stays_open_after_a_block_or_a_mistake(db: Db) -> None:
    """In async code, SQLAlchemy closes such a block in a task of its own."""
    opened: list[Any] = []
    event.listen(db.engine.sync_engine, "connect", lambda *args: opened.append(args))
    ways: Any = (db.engine.connect, db.engine.begin, db.sessionmaker, db.transaction)
    for begin in ways:
        async with begin() as session:
            await session.execute(text("SELECT 1"))
            await session.commit()
    assert len(opened) == 1
    for begin in ways:
        with pytest.raises(exc.CompileError):
            async with begin() as session:
                await session.execute(text("SELECT 1"))
                await session.execute(insert(Users.model).values(nothing=1))
    assert len(opened) == 1 or db.engine.driver == "aiosqlite"
