"""What a context accepts, refuses and passes on."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session

from database.context import DbContext as AnyContext
from tests.commands import processes
from tests.conftest import DRIVERS_ASYNC, SERVERS_ASYNC, NewUrl
from tests.stacks.helpers import Db, Users

POSTGRES_ASYNC = [driver for driver in DRIVERS_ASYNC if "postgresql" in driver]
ROW_LEVEL_SECURITY = """
CREATE TABLE secrets (tenant TEXT, word TEXT);
INSERT INTO secrets VALUES ('one', 'mine'), ('two', 'theirs');
ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON secrets USING (tenant = current_setting('app.tenant', true));
CREATE ROLE {role} LOGIN;
GRANT SELECT ON secrets TO {role}
"""


@pytest.mark.parametrize("driver", POSTGRES_ASYNC)
async def test_row_level_security_holds_for_reads_with_an_isolation_level(
    driver: str, new_url: NewUrl
) -> None:
    def set_tenant(_session: Session, _transaction: Any, connection: Any) -> None:
        connection.execute(text("SELECT set_config('app.tenant', 'one', true)"))

    url = make_url(new_url("postgresql+psycopg"))
    with AnyContext(url) as owner, owner.engine.begin() as connection:
        for statement in ROW_LEVEL_SECURITY.format(role=url.database).split(";"):
            connection.execute(text(statement))
    url = url.set(drivername=driver, username=url.database)
    async with Db(url, isolation_level="READ COMMITTED") as db:
        event.listen(Session, "after_begin", set_tenant)
        async with db.read_session() as session:
            words = await session.scalars(text("SELECT word FROM secrets"))
            assert words.all() == ["mine"]
        event.remove(Session, "after_begin", set_tenant)


@pytest.mark.parametrize("url", POSTGRES_ASYNC, indirect=True)
async def test_reads_use_the_isolation_level_and_the_schema_of_the_context(
    url: str,
) -> None:
    level: dict[str, Any] = {"isolation_level": "REPEATABLE READ"}
    for options in (level, {"execution_options": level}):
        async with Db(url, **options) as db, db.read_session() as session:
            found = await session.scalar(text("SHOW transaction_isolation"))
            assert found == "repeatable read"
    schema = {"schema_translate_map": {None: "nowhere"}}
    async with Db(url, execution_options=schema) as db:
        with pytest.raises(Exception, match="nowhere"):
            await Users(db).get_page()


@pytest.mark.parametrize("driver", SERVERS_ASYNC)
def test_accepts_an_at_sign_in_the_query_of_a_url(driver: str) -> None:
    db = Db(f"{driver}://user:p%40ss@host/name?application_name=api@host")
    assert db.engine.url.query == {"application_name": "api@host"}
    assert "p@ss" not in repr(db.engine)


@pytest.mark.parametrize(
    "name",
    ["", "/", "/:memory:", "/file::memory:?uri=true", "/file:x?mode=memory&uri=true"],
)
def test_refuses_a_sqlite_database_in_memory(name: str) -> None:
    with pytest.raises(ArgumentError, match="use a file"):
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


def open_and_write(path: Path) -> None:
    with AnyContext(f"sqlite:///{path}") as db, db.transaction() as session:
        session.execute(text("CREATE TABLE IF NOT EXISTS numbers (n INTEGER)"))
        session.execute(text("INSERT INTO numbers VALUES (1)"))


async def test_several_processes_open_a_new_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    writers = [processes.Process(target=open_and_write, args=[path]) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    async with Db(f"sqlite+aiosqlite:///{path}") as db, db.read_session() as session:
        assert await session.scalar(text("SELECT sum(n) FROM numbers")) == 4


async def test_autocommit_is_refused_on_sqlite(tmp_path: Path) -> None:
    """It would store nothing, and say nothing."""
    url = f"sqlite+aiosqlite:///{tmp_path}/new.db"
    level: Any = {"isolation_level": "AUTOCOMMIT"}
    for options in (level, {"execution_options": level}):
        async with Db(url, **options) as db:
            with pytest.raises(InvalidRequestError, match="AUTOCOMMIT"):
                await Users(db).get_page()


@pytest.mark.parametrize("url", SERVERS_ASYNC, indirect=True)
async def test_listeners_of_other_code_may_run_statements(url: str) -> None:
    def use(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))

    event.listen(Engine, "begin", use)
    try:
        async with Db(url) as db:
            for _ in range(2):
                async with db.engine.connect() as connection:
                    await connection.execute(text("SELECT 1"))
    finally:
        event.remove(Engine, "begin", use)


@pytest.mark.parametrize("url", POSTGRES_ASYNC, indirect=True)
async def test_a_two_phase_transaction_may_follow_a_rollback(url: str) -> None:
    def use(connection: Connection) -> None:
        connection.begin().rollback()
        with connection.begin_twophase() as transaction:
            connection.execute(text("SELECT 1"))
            transaction.rollback()  # to commit, the server needs a setting

    async with Db(url) as db, db.engine.connect() as connection:
        await connection.run_sync(use)


@pytest.mark.parametrize("url", POSTGRES_ASYNC, indirect=True)
async def test_an_error_of_the_first_connection_is_raised(url: str) -> None:
    def fail(connection: Any, _record: object) -> None:
        with suppress(Exception):
            connection.cursor().execute("SELECT 1/0")

    async with Db(url) as db:
        event.listen(db.engine.sync_engine, "connect", fail, insert=True)
        with pytest.raises(DBAPIError, match="aborted"):
            await Users(db).get_page()
