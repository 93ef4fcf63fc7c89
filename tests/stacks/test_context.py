"""What a context accepts, refuses and passes on."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from database.context import DbContext as AnyContext
from database.context_async import DbContextAsync as Db
from repositories.user_repository_async import UserRepositoryAsync as Users
from tests.commands import processes
from tests.conftest import DRIVERS_ASYNC, SQLITE_ASYNC

POSTGRES_ASYNC = [driver for driver in DRIVERS_ASYNC if "postgresql" in driver]
on_postgres = pytest.mark.parametrize("url", POSTGRES_ASYNC, indirect=True)
ROW_LEVEL_SECURITY = """
CREATE TABLE secrets (tenant TEXT, word TEXT);
INSERT INTO secrets VALUES ('one', 'mine'), ('two', 'theirs');
ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON secrets USING (tenant = current_setting('app.tenant', true));
CREATE ROLE reader LOGIN;
GRANT SELECT ON secrets TO reader
"""


@pytest.mark.parametrize("driver", DRIVERS_ASYNC[1:2])
async def test_row_level_security_holds_for_reads_with_an_isolation_level(
    driver: str, new_url: Callable[[str], str]
) -> None:
    def set_tenant(_session: Session, _transaction: Any, connection: Any) -> None:
        connection.execute(text("SELECT set_config('app.tenant', 'one', true)"))

    url = make_url(new_url("postgresql+psycopg"))
    with AnyContext(url) as owner, owner.engine.begin() as connection:
        for statement in ROW_LEVEL_SECURITY.split(";"):
            connection.execute(text(statement))
    url = url.set(drivername=driver, username="reader")
    async with Db(url, isolation_level="READ COMMITTED") as db:
        event.listen(Session, "after_begin", set_tenant)
        async with db.read_session() as session:
            words = await session.scalars(text("SELECT word FROM secrets"))
            assert words.all() == ["mine"]
        event.remove(Session, "after_begin", set_tenant)


@on_postgres
async def test_reads_use_the_isolation_level_and_the_schema_of_the_context(
    url: str,
) -> None:
    choices: list[dict[str, Any]] = [
        {"isolation_level": "REPEATABLE READ"},
        {"execution_options": {"isolation_level": "REPEATABLE READ"}},
    ]
    for options in choices:
        async with Db(url, **options) as db, db.read_session() as session:
            level = await session.scalar(text("SHOW transaction_isolation"))
            assert level == "repeatable read"
    schema = {"schema_translate_map": {None: "nowhere"}}
    async with Db(url, execution_options=schema) as db:
        with pytest.raises(Exception, match="nowhere"):
            await Users(db).get_page()


@pytest.mark.parametrize("driver", DRIVERS_ASYNC[1:])
def test_accepts_an_at_sign_in_the_query_of_a_url(driver: str) -> None:
    db = Db(f"{driver}://user:p%40ss@host/name?application_name=api@host")
    assert db.engine.url.query == {"application_name": "api@host"}
    assert "p@ss" not in repr(db.engine)


def test_refuses_a_sqlite_database_in_memory() -> None:
    for name in ("", "/", "/:memory:", "/file::memory:?uri=true"):
        with pytest.raises(ArgumentError, match="use a file"):
            Db(f"sqlite+aiosqlite://{name}")
    with pytest.raises(ArgumentError, match="use a file"):
        Db("sqlite+aiosqlite:///file:x?mode=memory&uri=true")


@pytest.mark.parametrize("url", SQLITE_ASYNC, indirect=True)
async def test_options_replace_the_defaults(url: str) -> None:
    async with Db(url, connect_args={"timeout": 7}, hide_parameters=False) as db:
        assert not db.engine.sync_engine.hide_parameters
        async with db.engine.connect() as connection:
            assert await connection.scalar(text("PRAGMA busy_timeout")) == 7000


def open_and_write(path: str) -> None:
    with AnyContext(f"sqlite:///{path}") as db, db.transaction() as session:
        session.execute(text("CREATE TABLE IF NOT EXISTS numbers (n INTEGER)"))
        session.execute(text("INSERT INTO numbers VALUES (1)"))


@pytest.mark.parametrize("url", SQLITE_ASYNC, indirect=True)
async def test_several_processes_open_a_new_file_at_once(url: str) -> None:
    path = f"{make_url(url).database}.new"
    writers = [processes.Process(target=open_and_write, args=[path]) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    async with Db(make_url(url).set(database=path)) as db, db.read_session() as session:
        assert await session.scalar(text("SELECT sum(n) FROM numbers")) == 4
