"""The traps that need no fault of a server, on real files, servers and processes. Without its fix, a test goes red."""

import asyncio
import gc
import logging
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from asyncpg import PostgresError  # type: ignore[import-untyped]  # it brings no types
from sqlalchemy import Connection, event, func, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InvalidRequestError, OperationalError
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.exc import StaleDataError

from database.context import DbContext
from database.context_async import DbContextAsync
from database.models import Salary, TaxAccount, UserDb
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync
from tests.conftest import DRIVERS
from tests.servers import Server
from tests.stacks import Stack, pool, scalars, sync_engine
from tests.test_contract import a_user
from tests.test_demo import Command, run

SQLITE = pytest.mark.parametrize("stack", ["sqlite", "aiosqlite"], indirect=True)
ASYNC = pytest.mark.parametrize("stack", [name for name, (_, is_async) in DRIVERS.items() if is_async], indirect=True)
MYSQL = pytest.mark.parametrize("stack", ["pymysql", "aiomysql", "asyncmy"], indirect=True)
PAYDAY = date(2026, 1, 31)


async def names(stack: Stack) -> list[str]:
    """Who is stored, seen through a connection that nobody used before."""
    async with stack.context() as db:
        return [user.name for user in await stack.users(db).get_page()]


def elsewhere[T](stack: Stack, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start the work in another task; for the sync stack, in another thread."""
    return asyncio.create_task(work if stack.is_async else asyncio.to_thread(asyncio.run, work))


async def ends[T](stack: Stack, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns. It must not hang; the limit is far from what it takes."""
    return await asyncio.wait_for(elsewhere(stack, work), 30)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - an asyncio.Event can't be set from a thread
        await asyncio.sleep(0.005)


async def settle() -> None:
    """Wait until every other task is done: closing a connection goes on after the task that used it was cancelled."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


@SQLITE
async def test_foreign_keys_hold_on_every_connection_of_sqlite(stack: Stack, db: DbContextAsync) -> None:
    async with db.transaction() as tx:
        for connection in (tx, db):  # db takes a second one, since tx keeps the first
            assert await scalars(connection, text("PRAGMA foreign_keys")) == [1]
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            await scalars(tx, text("INSERT INTO salaries (amount, paid_on, user_id) VALUES (1, '', 7) RETURNING id"))
    user = await stack.users(db).create(a_user(salaries=[Salary(amount=Decimal("1"), paid_on=PAYDAY)]))
    await stack.users(db).delete(user.id)
    assert await scalars(db, select(func.count()).select_from(Salary)) == [0]


@SQLITE
async def test_a_transaction_that_reads_and_then_writes_is_not_locked_out(stack: Stack, db: DbContextAsync) -> None:
    user = await stack.users(db).create(a_user(name="0"))
    rivals: list[asyncio.Task[None]] = []

    async def count_up(then: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        async with db.transaction() as tx:
            found = await stack.users(tx).get_by_id(user.id)
            assert found
            if then:
                await then()
            found.name = str(int(found.name) + 1)
            await stack.users(tx).update(found)

    async def let_a_rival_try() -> None:
        rivals.append(elsewhere(stack, count_up()))
        await asyncio.sleep(0.2)  # time enough for it to get between the read and the write, if anything lets it

    await count_up(let_a_rival_try)
    await asyncio.gather(*rivals)
    assert await names(stack) == ["2"]


@SQLITE
async def test_a_writer_that_waits_in_vain_is_told_and_works_afterwards(stack: Stack, db: DbContextAsync) -> None:
    async with stack.context(connect_args={"timeout": 0}) as hasty:
        async with db.transaction() as tx:
            await stack.users(tx).create(a_user(1))
            for _ in range(2):
                with pytest.raises(OperationalError, match="locked"):
                    async with hasty.transaction():
                        pytest.fail("two writers at once")
        async with hasty.transaction() as tx:
            await stack.users(tx).create(a_user(2))
    assert await names(stack) == ["User 1", "User 2"]


async def test_a_lazy_load_is_the_same_clear_error_in_both_stacks(stack: Stack, db: DbContextAsync) -> None:
    users = stack.users(db)
    created = await users.create(a_user(salaries=[Salary(amount=Decimal("1"), paid_on=PAYDAY)]))
    found = await users.get_by_id(created.id, selectinload(UserDb.salaries))
    assert found
    with pytest.raises(InvalidRequestError, match=r"'UserDb\.tax_account' is not available due to lazy='raise'"):
        _ = found.tax_account
    paid = (await scalars(db, select(Salary)))[0]
    with pytest.raises(InvalidRequestError, match=r"'Salary\.user' is not available due to lazy='raise'"):
        _ = paid.user
    found.name = "Ada"
    await users.update(found)
    assert (found.id, found.name, found.email, found.version) == (created.id, "Ada", "user1@example.com", 2)
    assert [salary.paid_on for salary in found.salaries] == [PAYDAY], "a commit expires nothing"


@pytest.mark.parametrize("stack", ["sqlite", "psycopg", "pymysql"], indirect=True)
def test_every_constraint_has_a_name_that_a_migration_can_drop(stack: Stack) -> None:
    with DbContext(stack.url) as db:
        found: set[str | None] = set()
        schema = inspect(db.engine)
        for table in ("users", "tax_accounts", "salaries"):
            found.add(schema.get_pk_constraint(table)["name"])
            for constraint in (*schema.get_unique_constraints(table), *schema.get_foreign_keys(table)):
                found.add(constraint["name"])
            found |= {index["name"] for index in schema.get_indexes(table)}
    # MySQL calls every primary key PRIMARY, and says nothing
    keys = {None} if "mysql" in stack.url else {"pk_users", "pk_tax_accounts", "pk_salaries"}
    uniques = {"uq_users_email", "uq_tax_accounts_number", "uq_tax_accounts_user_id"}
    assert found == keys | uniques | {
        "fk_tax_accounts_user_id_users",
        "fk_salaries_user_id_users",
        "ix_salaries_user_id",
    }


@SQLITE
async def test_decimals_are_exact_on_sqlite_and_bring_no_warning(stack: Stack, db: DbContextAsync) -> None:
    """A warning is an error in these tests."""
    amounts = [Decimal("0.10"), Decimal("0.20"), Decimal("9999999999.99")]
    await stack.users(db).create(a_user(salaries=[Salary(amount=amount, paid_on=PAYDAY) for amount in amounts]))
    assert [str(amount) for amount in await scalars(db, select(Salary.amount))] == [str(amount) for amount in amounts]
    assert await scalars(db, select(func.sum(Salary.amount))) == [sum(amounts)]
    small = select(func.sum(Salary.amount)).where(Salary.amount < 1).scalar_subquery()
    assert await scalars(db, select(small == Decimal("0.30"))) == [True], "floats make 0.30000000000000004"


@pytest.mark.parametrize("in_transaction", [False, True])
async def test_the_later_of_two_saves_does_not_win(stack: Stack, db: DbContextAsync, in_transaction: bool) -> None:
    mine = await stack.users(db).create(a_user())
    theirs = await stack.users(db).get_by_id(mine.id)
    assert theirs
    theirs.name = "theirs"
    await stack.users(db).update(theirs)
    mine.name = "mine"
    with pytest.raises(StaleDataError):
        if in_transaction:
            async with db.transaction() as tx:
                await stack.users(tx).update(mine)
        else:
            await stack.users(db).update(mine)
    assert await names(stack) == ["theirs"]


class TestEmailIsUniqueUnderAnyCollation:
    def check(self, url: str) -> None:
        with DbContext(url) as db:
            db.create_all()
            users = UserRepository(db)
            users.create(a_user(name="\U0001f980", email="Irene@Example.com"))
            with pytest.raises(IntegrityError):
                users.create(a_user(email="IRENE@EXAMPLE.COM"))
            users.create(a_user(2, email="irené@example.com"))
            for email, name in (("iRENE@example.com", "\U0001f980"), ("IRENÉ@EXAMPLE.COM", "User 2")):
                found = users.get_by_email(email)
                assert found
                assert found.name == name
            assert users.get_by_email("\u0131rene@example.com") is None, "a Turkish i without its dot"

    @pytest.mark.parametrize("default", ["latin1", "utf8mb4 COLLATE utf8mb4_general_ci", "utf8mb3 COLLATE utf8mb3_bin"])
    def test_mariadb(self, mariadb: Server, default: str) -> None:
        name = mariadb.create_database()
        mariadb.execute(f"ALTER DATABASE {name} CHARACTER SET {default}")
        self.check(mariadb.url("mysql+pymysql", name))

    @pytest.mark.parametrize("locale", ["LOCALE 'C'", "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'"])
    def test_postgresql(self, postgres: Server, locale: str) -> None:
        name = f"test_locale_{len(locale)}"
        postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' {locale}")
        self.check(postgres.url("postgresql+psycopg", name))


SECRETS = ("Grace", "grace.hopper", "TAX-1906", "4321")


def told(error: BaseException) -> str:
    """All that a log of the error could show: the whole traceback, and the arguments of each cause."""
    lines = traceback.format_exception(error)
    cause: BaseException | None = error
    while cause:
        lines.append(repr(cause.args))
        cause = cause.__cause__
    return "\n".join(lines)


class TestNothingPersonal:
    async def test_in_what_a_database_refuses(
        self, stack: Stack, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """No value is written out below: a traceback shows the line that it comes from."""
        caplog.set_level(logging.INFO)
        name, email, number, amount = SECRETS

        def grace() -> UserDb:
            account = TaxAccount(number=number)
            return UserDb(
                name=name,
                email=f'"{email}\'s"@example.com',
                tax_account=account,
                salaries=[Salary(amount=Decimal(amount), paid_on=PAYDAY)],
            )

        async with stack.context(echo=True) as db:
            users = stack.users(db)
            stored = await users.create(grace())
            other = await users.get_by_id((await users.create(a_user(2))).id, selectinload(UserDb.tax_account))
            assert other
            same_email, same_number, nameless, homeless = grace(), grace(), grace(), grace()
            same_number.email = "other@example.com"
            nameless.email, nameless.tax_account = "other@example.com", TaxAccount(number="other")
            del nameless.name
            homeless.email = "other@example.com"
            homeless.tax_account = TaxAccount()
            other.email = stored.email
            refused: list[Callable[[UserRepositoryAsync], Awaitable[object]]] = [
                lambda users: users.create(same_email),
                lambda users: users.create(same_number),
                lambda users: users.create_many([a_user(3), same_email]),
                lambda users: users.create(nameless),
                lambda users: users.create(homeless),
                lambda users: users.update(other),
            ]
            errors: list[BaseException] = []
            for call in refused:
                with pytest.raises(IntegrityError) as caught:
                    await call(users)
                errors.append(caught.value)
            with pytest.raises(IntegrityError) as caught:
                async with db.transaction() as tx:
                    await refused[0](stack.users(tx))
            errors.append(caught.value)
            stored.name = "Admiral"
            await users.delete(stored.id)
            with pytest.raises(StaleDataError) as stale:
                await users.update(stored)
            errors.append(stale.value)
        output = "".join([*map(told, errors), caplog.text, *capfd.readouterr()])
        assert "INSERT INTO users" in output, "the statements were logged"
        for secret in SECRETS:
            assert secret not in output

    @MYSQL
    async def test_in_another_language_of_the_server(self, stack: Stack) -> None:
        email = f"{SECRETS[1]}@example.com"
        async with stack.context(connect_args={"init_command": "SET lc_messages = 'de_DE'"}) as db:
            await stack.users(db).create(a_user(email=email))
            with pytest.raises(IntegrityError) as caught:
                await stack.users(db).create(a_user(email=email))
        assert SECRETS[1] not in told(caught.value)

    def test_in_what_a_model_refuses(self) -> None:
        name, email, number, _ = SECRETS
        for model, field, value in (
            (UserDb, "name", name * 30),
            (UserDb, "name", name + "\ud800"),
            (UserDb, "email", email),
            (TaxAccount, "number", number * 9),
            (Salary, "amount", Decimal("-4321")),
            (Salary, "paid_on", name),
        ):
            with pytest.raises(ValueError) as caught:
                setattr(model(), field, value)
            for secret in SECRETS:
                assert secret not in told(caught.value)

    @pytest.mark.parametrize("name", [name for name in DRIVERS if "sqlite" not in name])
    async def test_no_password_when_there_is_no_connection(
        self, name: str, new_url: Callable[[str], str], caplog: pytest.LogCaptureFixture
    ) -> None:
        driver, is_async = DRIVERS[name]
        caplog.set_level(logging.INFO)
        url = make_url(new_url(driver)).set(password="sesame", username="nobody-knows")
        for address in (url.set(database="nowhere"), url.set(port=1)):
            stack = Stack(address, is_async=is_async)
            async with stack.context(echo=True) as db:
                # SQLAlchemy 2.0 leaves asyncpg's errors as they are while it connects
                with pytest.raises((DBAPIError, OSError, PostgresError)) as caught:
                    await stack.users(db).get_page()
                assert "sesame" not in told(caught.value) + repr(db.engine) + caplog.text

    @pytest.mark.parametrize(
        ("context", "url"),
        [
            (DbContext, "postgresql+asyncpg://user:{}@host/name"),
            (DbContext, "postgresql+psycopg2://user:{}@host/name"),
            (DbContext, "postgresql+psycopg://user:{}@host:port/name"),
            (DbContext, "postgresql+psycopg://user:p@{}@host/name"),
            (DbContext, "my sql://user:{}@host/name"),
            (DbContext, "user:{}@host/name"),
            (DbContext, "postgresql+psycopg://user:{}"),
            (DbContextAsync, "mysql+pymysql://user:{}@host/name"),
            (DbContextAsync, "postgresql+asyncpg://user:{}@[host/name?port=x:y:z"),
        ],
    )
    def test_no_password_when_the_url_is_wrong(self, context: Callable[[str], object], url: str) -> None:
        password = "sesame"
        with pytest.raises((ArgumentError, ModuleNotFoundError)) as caught:
            context(url.format(password))
        assert password not in told(caught.value)


SCRIPT = """
import asyncio
import sys

from database.context_async import DbContextAsync
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync


async def main(number: str) -> None:
    async with DbContextAsync(sys.argv[1]) as db:
        users = UserRepositoryAsync(db)
        ada = await users.create(UserDb(name="Ada", email="ada@example.com"))
        await asyncio.gather(*(users.get_by_id(ada.id) for _ in range(5)))
        async with db.transaction() as tx:
            await UserRepositoryAsync(tx).delete(ada.id)
        int(number)


asyncio.run(main("1"))
try:
    asyncio.run(main("one"))
except ValueError as error:
    print(error)
"""


@ASYNC
def test_an_async_script_ends_without_a_word(stack: Stack) -> None:
    """No unclosed connection, no "Event loop is closed": a context disposes its engine, after an error too."""
    ran = run(Command((sys.executable, "-W", "error", "-c", SCRIPT, stack.url), {}))
    assert ran.err == ""
    assert ran.out == "invalid literal for int() with base 10: 'one'\n"


# A connection whose opening is cancelled is left to the garbage collector: https://github.com/omnilib/aiosqlite/issues/259
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@ASYNC
async def test_a_cancelled_task_leaks_no_connection(stack: Stack, db: DbContextAsync) -> None:
    users = stack.users(db)
    user = await users.create(a_user(0))

    async def both() -> None:
        async with db.transaction() as tx:
            await stack.users(tx).get_by_id(user.id)
            await stack.users(tx).create(a_user(1))

    async with asyncio.timeout(30):
        for steps in range(40):
            for work in (users.get_by_id(user.id), users.get_page(), both()):
                task = asyncio.create_task(work)
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await settle()
                assert pool(db).checkedout() == 0
            if await users.get_by_email("user1@example.com"):
                break  # the work was done before it was cancelled: there is no later moment
        assert [found.name for found in await users.get_page(limit=1)] == ["User 0"]
    gc.collect()


SLOW = {"sqlite": "SELECT sleep({})", "postgresql": "SELECT pg_sleep({})", "mysql": "SELECT SLEEP({})"}


def keep_busy(connection: Connection, seconds: float) -> None:
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.dbapi_connection
        driver.create_function("sleep", 1, time.sleep)
    connection.exec_driver_sql(SLOW[connection.dialect.name].format(seconds)).close()


@contextmanager
def slow_inserts(db: DbContextAsync, seconds: float) -> Iterator[tuple[Event, Event]]:
    """Keep the database busy before each INSERT, again and again until it is enough; yield two events: busy, enough."""
    busy, enough = Event(), Event()

    def wait(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT"):
            busy.set()
            keep_busy(connection, seconds)
            if not enough.is_set():
                wait(connection, _cursor, statement)

    event.listen(sync_engine(db), "before_cursor_execute", wait)
    try:
        yield busy, enough
    finally:
        event.remove(sync_engine(db), "before_cursor_execute", wait)


@ASYNC
async def test_a_task_cancelled_while_its_session_closes_leaves_a_sound_connection(
    stack: Stack, db: DbContextAsync
) -> None:
    """If the close went on in the background, it would meet the transaction's own rollback on the way."""
    closing = Event()

    def close_slowly(connection: Connection, *_: Any) -> None:
        closing.set()
        keep_busy(connection, 0.2)

    async def work() -> None:
        async with db.transaction() as tx:
            await stack.users(tx).create(a_user(1))
            await stack.users(tx).get_page()

    event.listen(sync_engine(db), "rollback_savepoint", close_slowly)
    task = asyncio.create_task(work())
    await until(closing.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    event.remove(sync_engine(db), "rollback_savepoint", close_slowly)
    await stack.users(db).create(a_user(2))
    assert await names(stack) == ["User 2"]


class TestMisuse:
    async def test_one_transaction_used_by_two_at_once_tells_the_second(self, stack: Stack, db: DbContextAsync) -> None:
        async def block() -> None:
            with slow_inserts(db, 0.05) as (busy, enough):
                async with db.transaction() as tx:
                    users = stack.users(tx)
                    first = elsewhere(stack, users.create(a_user(1)))
                    await until(busy.is_set)
                    for call in (users.create(a_user(2)), users.get_page(), users.delete(1), tx.create_all()):
                        with pytest.raises(InvalidRequestError, match="another task, thread or inner transaction"):
                            await call
                    enough.set()
                    await first

        await ends(stack, block())
        assert await names(stack) == ["User 1"]

    @pytest.mark.parametrize("error", [None, ZeroDivisionError])
    async def test_a_transaction_that_ends_while_somebody_uses_it_is_told_and_stores_nothing(
        self, stack: Stack, db: DbContextAsync, error: type[Exception] | None
    ) -> None:
        async def block() -> None:
            late: list[asyncio.Task[UserDb]] = []
            try:
                with slow_inserts(db, 0.5) as (busy, enough):
                    enough.set()
                    async with db.transaction() as tx:
                        late.append(elsewhere(stack, stack.users(tx).create(a_user(1))))
                        await until(busy.is_set)
                        if error:
                            raise error
            finally:
                await asyncio.gather(*late, return_exceptions=True)

        with pytest.raises(error or InvalidRequestError, match=None if error else "has ended, or another task, thread"):
            await ends(stack, block())
        assert await names(stack) == []
        for n in range(3):
            await ends(stack, stack.users(db).create(a_user(n)))
        assert await names(stack) == ["User 0", "User 1", "User 2"], "what comes after is stored"
        assert pool(db).checkedout() == 0

    @ASYNC
    async def test_a_transaction_cancelled_while_somebody_uses_it_stores_nothing(
        self, stack: Stack, db: DbContextAsync
    ) -> None:
        late: list[asyncio.Task[UserDb]] = []

        async def block() -> None:
            with slow_inserts(db, 0.5) as (busy, enough):
                enough.set()
                async with db.transaction() as tx:
                    late.append(elsewhere(stack, stack.users(tx).create(a_user(1))))
                    await until(busy.is_set)

        task = asyncio.create_task(block())
        await until(lambda: bool(late))
        await asyncio.sleep(0.2)  # it waits for the other, or has ended already
        task.cancel()
        with pytest.raises((asyncio.CancelledError, InvalidRequestError)):
            await asyncio.wait_for(task, 30)
        await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 30)
        for n in (2, 3):
            await stack.users(db).create(a_user(n))
        assert await names(stack) == ["User 2", "User 3"]

    async def test_two_inner_transactions_at_once_tell_the_second(self, stack: Stack, db: DbContextAsync) -> None:
        async def inner(tx: DbContextAsync) -> None:
            async with tx.transaction() as inner:
                await stack.users(inner).create(a_user(9))

        async with db.transaction() as tx:
            async with tx.transaction() as first:
                with pytest.raises(InvalidRequestError, match="another task, thread or inner transaction"):
                    await ends(stack, inner(tx))
                with pytest.raises(InvalidRequestError, match="another task, thread or inner transaction"):
                    await stack.users(tx).create(a_user(9))
                await stack.users(first).create(a_user(1))
            await stack.users(tx).create(a_user(2))
        assert await names(stack) == ["User 1", "User 2"]

    async def test_who_comes_during_commit_is_told(self, stack: Stack, db: DbContextAsync) -> None:
        def come(_: Connection) -> None:
            with pytest.raises(InvalidRequestError, match="This transaction has ended"):
                tx.sessionmaker()
            committed.append(True)

        committed: list[bool] = []
        event.listen(sync_engine(db), "commit", come)
        async with db.transaction() as tx:
            await stack.users(tx).create(a_user(1))
        assert committed
        assert await names(stack) == ["User 1"]

    @pytest.mark.parametrize("error", [None, ZeroDivisionError])
    async def test_a_transaction_used_after_its_end_says_so(
        self, stack: Stack, db: DbContextAsync, error: type[Exception] | None
    ) -> None:
        ended = []
        try:
            async with db.transaction() as tx:
                async with tx.transaction() as inner:
                    stored = await stack.users(inner).create(a_user(1))
                ended += [tx, inner]
                if error:
                    raise error
        except ZeroDivisionError:
            assert error
        stored.name = "Ada"
        for tx in ended:
            users = stack.users(tx)
            for call in (
                users.create(a_user(2)),
                users.get_by_id(stored.id),
                users.get_page(),
                users.update(stored),
                users.delete(stored.id),
                tx.transaction().__aenter__(),
                tx.create_all(),
            ):
                with pytest.raises(InvalidRequestError, match=r"has ended|is closed"):
                    await call
        assert await names(stack) == ([] if error else ["User 1"])
        assert pool(db).checkedout() == 0

    async def test_a_session_left_open_in_a_transaction_is_told(self, stack: Stack, db: DbContextAsync) -> None:
        with pytest.raises(InvalidRequestError, match="has ended, or another task, thread"):
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(1))
                tx.sessionmaker()
        assert await names(stack) == []

    @ASYNC
    async def test_a_transaction_does_not_outlive_a_call_that_was_cut_short(
        self, stack: Stack, db: DbContextAsync
    ) -> None:
        """A timeout that is caught must not lead to half of what was asked for."""
        with pytest.raises((InvalidRequestError, DBAPIError)), slow_inserts(db, 0.1) as (busy, enough):
            async with asyncio.timeout(30), db.transaction() as tx:
                enough.set()
                await stack.users(tx).create(a_user(1))
                busy.clear()
                enough.clear()
                call = asyncio.create_task(stack.users(tx).create(a_user(2)))
                await until(busy.is_set)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
        assert await names(stack) == []
        await stack.users(db).create(a_user(3))
        assert await names(stack) == ["User 3"]

    async def test_a_context_used_after_dispose_works(self, stack: Stack, db: DbContextAsync) -> None:
        users = stack.users(db)
        await users.create(a_user(1))
        await db.dispose()
        await users.create(a_user(2))
        async with db, db.transaction() as tx:
            await stack.users(tx).create(a_user(3))
        assert [user.name for user in await users.get_page()] == ["User 1", "User 2", "User 3"]


@pytest.mark.parametrize("flushed_before", [False, True])
def test_a_commit_that_fails_leaves_the_objects_to_be_written_again(tmp_path: Path, flushed_before: bool) -> None:
    """To SQLAlchemy they would be stored and unchanged: a second update would write nothing, and not say so."""
    with DbContext(f"sqlite:///{tmp_path}/commit.db") as db:
        db.create_all()
        users = UserRepository(db)
        user = users.create(a_user(1))
        other = a_user(2)
        user.name = "Ada"
        with db.sessionmaker() as session:
            session.execute(text("PRAGMA defer_foreign_keys = ON"))  # so that it is COMMIT that is refused
            session.add_all([user, other, Salary(amount=Decimal(1), paid_on=date(2026, 1, 1), user_id=12345)])
            if flushed_before:
                session.flush()
                user.name = "Ada King"
            with pytest.raises(IntegrityError):
                session.commit()
        assert [stored.name for stored in users.get_page()] == ["User 1"]
        assert user.version == 1
        assert other.id is None
        assert users.update(user).version == 2
        users.create(other)
        assert [stored.name for stored in users.get_page()] == [user.name, "User 2"]
