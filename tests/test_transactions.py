"""Transactions: whole or absent, never half and never without a word, whoever calls, fails, ends or is cancelled."""

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext, suppress
from datetime import date
from decimal import Decimal
from typing import Any, cast

import anyio
import pytest
from sqlalchemy import Connection, event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.exc import StaleDataError

from database import turn
from database.context import DbContext
from database.context_async import DbContextAsync, DbTransactionAsync
from database.models import Salary, UserDb
from repositories.user_repository_async import UserRepositoryAsync
from tests.conftest import DRIVERS, SYNC
from tests.stacks import Awaitable as SyncStack
from tests.stacks import Stack, pool, statements, sync_engine


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("stack", names, indirect=True)


ASYNC = on(*[name for name, (_, is_async) in DRIVERS.items() if is_async])
ON_SQLITE, ON_POSTGRESQL, _ = (
    [name for name, (driver, _) in DRIVERS.items() if driver.startswith(backend)] for backend in SYNC
)


def a_user(n: int, **values: Any) -> UserDb:
    return UserDb(name=f"User {n}", email=f"user{n}@example.com", **values)


def elsewhere[T](stack: Stack, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start the work in another task; for the sync stack, in another thread."""
    return asyncio.create_task(work if stack.is_async else asyncio.to_thread(asyncio.run, work))


async def ends[T](stack: Stack, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns. It must not hang; the limit is far from what it takes."""
    return await asyncio.wait_for(elsewhere(stack, work), 30)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - an asyncio.Event can't be set from a thread
            await asyncio.sleep(0.001)


async def run[T](
    stack: Stack, db: DbContextAsync, work: Callable[[Any], Coroutine[Any, Any, T]], attempts: int = 10
) -> T:
    if stack.is_async:
        return await db.run(work, attempts)
    sync = cast(DbContext, cast(SyncStack, db).target)
    return await asyncio.to_thread(sync.run, lambda tx: asyncio.run(work(SyncStack(tx))), attempts)


async def check(stack: Stack, db: DbContextAsync, *stored: int) -> None:
    """These users are stored, no connection is lost, and the next writes work."""
    await until(lambda: pool(db).checkedout() == 0)
    async with stack.context() as other:
        assert sorted(user.name for user in await stack.users(other).get_page()) == sorted(f"User {n}" for n in stored)
    await ends(stack, stack.users(db).create(a_user(98)))
    async with db.transaction() as tx:
        last = await stack.users(tx).create(a_user(99))
    assert await stack.users(db).delete(last.id)


@contextmanager
def listening(db: DbContextAsync, name: str, listener: Callable[..., None]) -> Iterator[None]:
    event.listen(sync_engine(db), name, listener)
    try:
        yield
    finally:
        event.remove(sync_engine(db), name, listener)


class TestAllOrNothing:
    async def test_a_transaction_is_stored_whole_or_not_at_all(self, stack: Stack, db: DbContextAsync) -> None:
        async with db.transaction() as tx:
            await stack.users(tx).create_many([a_user(1), a_user(2)])
            await stack.users(tx).create(a_user(3))
        with pytest.raises(ZeroDivisionError):
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(4))
                await stack.users(tx).delete(1)
                raise ZeroDivisionError
        await check(stack, db, 1, 2, 3)

    async def test_inner_transactions_are_savepoints_on_every_level(self, stack: Stack, db: DbContextAsync) -> None:
        async with db.transaction() as tx:
            await stack.users(tx).create(a_user(1))
            async with tx.transaction() as inner:
                await stack.users(inner).create(a_user(2))
                with pytest.raises(ZeroDivisionError):
                    async with inner.transaction() as failing:
                        await stack.users(failing).create(a_user(3))
                        async with failing.transaction() as innermost:
                            await stack.users(innermost).create(a_user(4))
                        raise ZeroDivisionError
                with pytest.raises(IntegrityError):
                    async with inner.transaction() as failing:
                        await stack.users(failing).create_many([a_user(5), a_user(1)])
                await stack.users(inner).create(a_user(6))
            await stack.users(tx).create(a_user(7))
        await check(stack, db, 1, 2, 6, 7)

    async def test_reads_see_what_the_transaction_wrote_by_any_way(self, stack: Stack, db: DbContextAsync) -> None:
        async with db.transaction() as tx:
            user = await stack.users(tx).create(a_user(1, salaries=[]))
            async with tx.session() as session:
                await session.execute(text("UPDATE users SET name = 'User 2'"))
                session.add(Salary(amount=Decimal(1), paid_on=date(2026, 1, 31), user_id=user.id))
            assert await stack.users(tx).get_by_id(user.id, selectinload(UserDb.salaries)) is user
            assert (user.name, len(user.salaries)) == ("User 2", 1)
        await check(stack, db, 2)

    @pytest.mark.parametrize("inner", [False, True])
    async def test_objects_of_a_rolled_back_transaction_are_spent(
        self, stack: Stack, db: DbContextAsync, users: UserRepositoryAsync, inner: bool
    ) -> None:
        passed, found = await users.create_many([a_user(1), a_user(2)])
        async with AsyncExitStack() as outer:
            around = await outer.enter_async_context(db.transaction()) if inner else db
            with pytest.raises(ZeroDivisionError):
                async with around.transaction() as tx:
                    passed.name = "lost"
                    await stack.users(tx).update(passed)
                    found = cast(UserDb, await stack.users(tx).get_by_id(found.id))
                    found.name = "lost"
                    created = await stack.users(tx).create(a_user(3))
                    raise ZeroDivisionError
        await users.create(a_user(4))  # with the id of the one that was lost, if ids were given out again
        for refuses in (users.create, users.update):
            for user in (passed, found, created):
                with pytest.raises(InvalidRequestError, match=r"stored before|spent by an error"):
                    await refuses(user)
        await check(stack, db, 1, 2, 4)

    async def test_what_update_refuses_is_not_stored_by_the_commit(
        self, stack: Stack, db: DbContextAsync, users: UserRepositoryAsync
    ) -> None:
        spent, stale, other = await users.create_many([a_user(1), a_user(2), a_user(3)])
        spent.email = other.email
        with pytest.raises(IntegrityError):
            await users.update(spent)
        theirs = cast(UserDb, await users.get_by_id(stale.id))
        theirs.name = "User 4"
        await users.update(theirs)
        async with db.transaction() as tx:
            for refused, error in ((spent, InvalidRequestError), (stale, StaleDataError)):
                refused.name = "lost"
                with pytest.raises(error):
                    async with tx.transaction() as inner:
                        await stack.users(inner).update(refused)
            await stack.users(tx).create(a_user(5))
        await check(stack, db, 1, 4, 3, 5)

    @on(*ON_SQLITE)
    async def test_who_reads_and_then_writes_is_waited_for(self, stack: Stack, db: DbContextAsync) -> None:
        """Without the write lock from the start, the second of two is "database is locked" at once."""
        user = await stack.users(db).create(a_user(0))

        async def count_up(then: Callable[[], Awaitable[None]] | None = None) -> None:
            async with db.transaction() as tx:
                found = cast(UserDb, await stack.users(tx).get_by_id(user.id))
                if then:
                    await then()
                found.name = f"User {int(found.name[5:]) + 1}"
                await stack.users(tx).update(found)

        async def let_a_rival_begin() -> None:
            with statements(db) as seen:
                rivals.append(elsewhere(stack, count_up()))
                await until(lambda: seen)

        rivals: list[asyncio.Task[None]] = []
        await count_up(let_a_rival_begin)
        await asyncio.gather(*rivals)
        await check(stack, db, 2)


INTEGRITY = "INSERT INTO users (version, name, email) VALUES (1, 'User 2', 'user1@example.com')"
WRONG = {
    "an insert": INTEGRITY,
    "a query": "SELECT nothing FROM users",
    "a delete": "DELETE FROM users WHERE nothing = 1",
}


class TestSwallowedFailures:
    async def swallow(self, stack: Stack, db: Any, what: str, where: str) -> None:
        """Fail as told, catch the error, and write on as if nothing had been."""
        with suppress(DBAPIError, InvalidRequestError):
            async with db.session() as session:
                with suppress(DBAPIError) if where == "inside" else nullcontext():
                    if what == "a flush":
                        session.add_all([a_user(2), a_user(1)])
                        await session.flush()
                    else:
                        await session.execute(text(WRONG[what]))
        if where == "outside":
            with suppress(DBAPIError, InvalidRequestError):
                await stack.users(db).create(a_user(3))

    @pytest.mark.parametrize("where", ["inside", "outside"])
    @pytest.mark.parametrize("what", ["a flush", *WRONG])
    @pytest.mark.parametrize("level", ["outer", "inner", "inner goes on", "run"])
    async def test_are_told_at_the_end_and_nothing_is_stored(
        self, stack: Stack, db: DbContextAsync, level: str, what: str, where: str
    ) -> None:
        async def work(tx: DbTransactionAsync) -> None:
            calls.append(1)
            await stack.users(tx).create(a_user(4))
            if level == "inner":
                async with tx.transaction() as inner:
                    await self.swallow(stack, inner, what, where)
                return
            await self.swallow(stack, tx, what, where)
            if level == "inner goes on":  # its savepoint was made after the failure, and must not make it forgotten
                with suppress(DBAPIError, InvalidRequestError, ZeroDivisionError):
                    async with tx.transaction():
                        raise ZeroDivisionError

        calls: list[int] = []
        await stack.users(db).create(a_user(1))
        with pytest.raises((DBAPIError, InvalidRequestError)):
            if level == "run":
                await run(stack, db, work)
            else:
                async with db.transaction() as tx:
                    await work(tx)
        assert len(calls) == 1
        await check(stack, db, 1)

    @pytest.mark.parametrize("what", ["a flush", *WRONG])
    async def test_in_a_plain_session_too(self, stack: Stack, db: DbContextAsync, what: str) -> None:
        await stack.users(db).create(a_user(1))
        with pytest.raises((DBAPIError, InvalidRequestError)):
            async with db.session() as session:
                session.add(a_user(4))
                await session.flush()
                with suppress(DBAPIError):
                    if what == "a flush":
                        session.add(a_user(1))
                        await session.flush()
                    else:
                        await session.execute(text(WRONG[what]))
                session.add(a_user(3))
        await check(stack, db, 1)

    async def test_a_keyboard_interrupt_is_one_of_them(self, stack: Stack, db: DbContextAsync) -> None:
        def interrupt(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("INSERT"):
                raise KeyboardInterrupt

        with pytest.raises(InvalidRequestError, match="failed"):
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(1))
                with listening(db, "after_cursor_execute", interrupt), pytest.raises(KeyboardInterrupt):
                    await stack.users(tx).create(a_user(2))
                with pytest.raises(InvalidRequestError, match="failed"):
                    await stack.users(tx).create(a_user(3))
        with listening(db, "after_cursor_execute", interrupt), pytest.raises(KeyboardInterrupt):
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(2))
        await check(stack, db)


class TestRun:
    @pytest.mark.parametrize("attempts", [1, 3])
    async def test_repeats_a_stale_row_so_often_and_not_more(
        self, stack: Stack, db: DbContextAsync, users: UserRepositoryAsync, attempts: int
    ) -> None:
        async def work(tx: DbTransactionAsync) -> None:
            calls.append(1)
            await stack.users(tx).create(a_user(5))
            await stack.users(tx).update(stale.pop())

        calls = list[int]()
        user = await users.create(a_user(1))
        stale = [cast(UserDb, await users.get_by_id(user.id)) for _ in range(3)]
        for row in [user, *stale]:
            row.name = "User 2"
        await users.update(user)
        with pytest.raises(StaleDataError):
            await run(stack, db, work, attempts)
        assert len(calls) == attempts
        await check(stack, db, 2)

    async def test_repeats_nothing_else(self, stack: Stack, db: DbContextAsync, users: UserRepositoryAsync) -> None:
        async def work(tx: DbTransactionAsync) -> None:
            calls.append(1)
            await stack.users(tx).create_many([a_user(2), a_user(1)])

        calls = list[int]()
        await users.create(a_user(1))
        with pytest.raises(IntegrityError):
            await run(stack, db, work)
        assert len(calls) == 1
        await check(stack, db, 1)

    async def test_tells_when_an_object_from_outside_was_spent(self, stack: Stack, db: DbContextAsync) -> None:
        async def work(tx: DbTransactionAsync) -> None:
            calls.append(1)
            await stack.users(tx).create(user)
            if len(calls) == 1:
                raise StaleDataError

        calls, user = list[int](), a_user(1)
        with pytest.raises(InvalidRequestError, match="stored before, or rolled back"):
            await run(stack, db, work)
        assert len(calls) == 2
        await check(stack, db)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a block waits five seconds for the call under way: a fifth of one is enough where it waits in vain."""
    monkeypatch.setattr(turn, "range", lambda _: range(20), raising=False)


class Holder:
    """A call in another task or thread, which lasts until it is let go."""

    def __init__(self, stack: Stack, db: Any, *, inner: bool = False) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.task = elsewhere(stack, self.hold(db.transaction() if inner else db.session(), stack, inner))

    async def hold(self, block: Any, stack: Stack, inner: bool) -> None:
        async with block as held:
            self.entered.set()
            await until(self.leave.is_set)
            if inner:
                await stack.users(held).create(a_user(7))
            else:
                await held.execute(text(INTEGRITY.replace("2", "7").replace("user1", "user7")))

    async def let_go(self) -> BaseException | None:
        self.leave.set()
        return (await asyncio.wait_for(asyncio.gather(self.task, return_exceptions=True), 30))[0]


class TestOneCallAtATime:
    @pytest.mark.parametrize("inner", [False, True])
    async def test_the_second_is_refused_and_the_transaction_is_doomed(
        self, stack: Stack, db: DbContextAsync, inner: bool
    ) -> None:
        user = await stack.users(db).create(a_user(1))
        with pytest.raises(InvalidRequestError, match="failed"):
            async with db.transaction() as tx:
                users = stack.users(tx)
                await users.create(a_user(2))
                holder = Holder(stack, tx, inner=inner)
                await until(holder.entered.is_set)
                for call in (
                    users.create(a_user(3)),
                    users.update(user),
                    users.get_page(),
                    users.delete(user.id),
                    tx.session().__aenter__(),
                    tx.transaction().__aenter__(),
                ):
                    with pytest.raises(InvalidRequestError, match="in use"):
                        await call
                await holder.let_go()
                with pytest.raises(InvalidRequestError, match="failed"):
                    await users.get_page()
        await check(stack, db, 1)

    @ASYNC
    async def test_gathered_calls_are_refused(self, stack: Stack, db: DbContextAsync) -> None:
        """The first refusal leaves the block, while the call that was first is still under way."""
        with pytest.raises(InvalidRequestError, match="in use"):
            async with asyncio.timeout(30), db.transaction() as tx:
                await asyncio.gather(*(stack.users(tx).create(a_user(n)) for n in range(5)))
        await check(stack, db)

    @pytest.mark.parametrize("callers", [1, 3])
    async def test_others_that_keep_calling_do_not_keep_the_block_from_ending(
        self, stack: Stack, db: DbContextAsync, callers: int
    ) -> None:
        async def keep_calling() -> None:
            await until(lambda: begun)
            while not over.is_set():
                with suppress(InvalidRequestError, DBAPIError):
                    calls.append(1)
                    await stack.users(begun[0]).get_page()
                    await stack.users(begun[0]).create(a_user(len(calls)))
                await asyncio.sleep(0)

        async def block() -> None:
            async with db.transaction() as tx:
                begun.append(tx)
                await until(lambda: len(calls) > 10)

        begun, calls, over = list[DbTransactionAsync](), list[int](), threading.Event()
        callings = [elsewhere(stack, keep_calling()) for _ in range(callers)]
        try:
            # one alone may happen to be between two calls
            with pytest.raises(InvalidRequestError) if callers > 1 else suppress(InvalidRequestError):
                await ends(stack, block())
        finally:
            over.set()
        await asyncio.gather(*callings)
        async with stack.context() as other:
            stored = [int(user.name[5:]) for user in await stack.users(other).get_page(limit=10_000)]
        assert not stored or callers == 1
        if not stored:
            await check(stack, db)

    @pytest.mark.parametrize("error", [None, ZeroDivisionError])
    @pytest.mark.parametrize("in_time", [True, False])
    async def test_a_block_that_ends_while_a_call_is_under_way_waits_for_it_some_time(
        self, stack: Stack, db: DbContextAsync, error: type[Exception] | None, in_time: bool, impatient: None
    ) -> None:
        stored: tuple[int, ...] = (1, 7) if in_time and not error else ()
        with nullcontext() if stored else pytest.raises((error or InvalidRequestError, DBAPIError)):
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(1))
                holder = Holder(stack, tx)
                await until(holder.entered.is_set)
                if in_time:
                    threading.Timer(0.05, holder.leave.set).start()
                if error:
                    raise error
        told = await holder.let_go()
        assert bool(told) is not in_time, "a call that goes on after the end is refused"
        await check(stack, db, *stored)

    @ASYNC
    @pytest.mark.parametrize("moment", ["in the block", "at its end"])
    async def test_a_block_that_is_cancelled_while_a_call_is_under_way_stores_nothing(
        self, stack: Stack, db: DbContextAsync, moment: str, impatient: None
    ) -> None:
        async def block() -> None:
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(1))
                holder = Holder(stack, tx)
                await until(holder.entered.is_set)
                holders.append(holder)
                if moment == "in the block":
                    await asyncio.Event().wait()

        holders: list[Holder] = []
        task = asyncio.create_task(block())
        await until(lambda: holders)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, InvalidRequestError, DBAPIError)):
            await asyncio.wait_for(task, 30)
        assert await holders[0].let_go()
        await check(stack, db)

    # the drivers' own cursors find their connection gone
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
    async def test_a_stream_left_open_in_a_generator_is_told(
        self, stack: Stack, db: DbContextAsync, impatient: None
    ) -> None:
        async def rows(tx: DbTransactionAsync) -> AsyncIterator[UserDb]:
            async with tx.session() as session:
                query = select(UserDb).execution_options(yield_per=1)
                if stack.is_async:
                    async for row in await session.stream_scalars(query):
                        yield row
                for row in await session.scalars(query):
                    yield row

        await stack.users(db).create_many([a_user(n) for n in range(5)])
        with pytest.raises((InvalidRequestError, DBAPIError)):
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(5))
                left_open = rows(tx)
                await anext(left_open)
        with suppress(InvalidRequestError, DBAPIError):
            await cast(AsyncGenerator[UserDb], left_open).aclose()
        gc.collect()
        await check(stack, db, *range(5))

    @pytest.mark.parametrize("error", [None, ZeroDivisionError])
    async def test_a_transaction_used_after_its_end_is_told(
        self, stack: Stack, db: DbContextAsync, error: type[Exception] | None
    ) -> None:
        ended, sessions = [], []
        with pytest.raises(error) if error else nullcontext():
            async with db.transaction() as tx:
                async with tx.transaction() as inner:
                    user = await stack.users(inner).create(a_user(1))
                    async with inner.session() as session:
                        sessions.append(session)
                ended += [tx, inner]
                if error:
                    raise error
        for users in map(stack.users, ended):
            for call in (users.create(a_user(2)), users.get_page(), users.update(user), users.delete(user.id)):
                with pytest.raises(InvalidRequestError, match="has ended"):
                    await call
        for late in (*(tx.transaction() for tx in ended), *(tx.session() for tx in ended)):
            with pytest.raises(InvalidRequestError, match="has ended"):
                await late.__aenter__()
        with pytest.raises(InvalidRequestError, match="closed"):
            await sessions[0].execute(select(UserDb))
        await check(stack, db, *[] if error else [1])

    @pytest.mark.parametrize("end", ["commit", "rollback", "close"])
    @pytest.mark.parametrize("inner", [False, True])
    async def test_a_transaction_ended_by_hand_is_told(
        self, stack: Stack, db: DbContextAsync, end: str, inner: bool
    ) -> None:
        with pytest.raises(InvalidRequestError):
            async with db.transaction() as outer:
                await stack.users(outer).create(a_user(1))
                async with outer.transaction() if inner else nullcontext(outer) as tx, tx.session() as session:
                    await getattr(session, end)()
        await check(stack, db, *[1] if end == "commit" else [])


def test_who_comes_while_a_turn_is_taken_or_ends_is_refused_and_dooms_it() -> None:
    taken, ending = turn.Turn(), turn.Turn()
    with taken.call(), pytest.raises(InvalidRequestError, match="in use"), taken.call(dooms=False):
        pass
    with ending.call():
        next(ending.end())  # it waits for this call
    with pytest.raises(InvalidRequestError, match="has ended"), ending.call():
        pass
    for doomed in (taken, ending):
        with pytest.raises(InvalidRequestError, match="failed"):
            doomed.check()


class Stepping:
    """Awaits the work, and calls interrupt() one turn of the event loop after its step-th suspension, and again."""

    def __init__(self, work: Coroutine[Any, Any, None], step: int, interrupt: Callable[[], object], times: int) -> None:
        self.work = work
        self.steps = range(step, step + times)
        self.interrupt = interrupt
        self.taken = 0

    def __await__(self) -> Generator[Any, Any]:
        go_on, value = self.work.send, cast(Any, None)
        while True:
            try:
                awaited = go_on(value)
            except StopIteration:
                return
            self.taken += 1
            if self.taken in self.steps:
                asyncio.get_running_loop().call_soon(self.interrupt)
            try:
                go_on, value = self.work.send, (yield awaited)
            except BaseException as error:  # into the work, whatever it is
                go_on, value = self.work.throw, error


# A connection whose opening is cancelled is left to the garbage collector: https://github.com/omnilib/aiosqlite/issues/259
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@ASYNC
@pytest.mark.parametrize("by", ["asyncio", "asyncio, twice", "AnyIO"])
async def test_cancelled_at_any_step_a_transaction_is_whole_or_absent(
    stack: Stack, db: DbContextAsync, by: str
) -> None:
    async def work(n: int) -> None:
        async with db.transaction() as tx:
            await stack.users(tx).create(a_user(2 * n))
            async with tx.transaction() as inner:
                await stack.users(inner).get_page(limit=1)
                await stack.users(inner).create(a_user(2 * n + 1))

    async def cancelled(n: int) -> int:
        if by == "AnyIO":
            with anyio.CancelScope() as scope:
                stepping = Stepping(work(n), n, scope.cancel, 1)
                await stepping
        else:
            task = cast(asyncio.Task[Any], asyncio.current_task())
            stepping = Stepping(work(n), n, task.cancel, 2 if "twice" in by else 1)
            with suppress(asyncio.CancelledError):
                await stepping
        return stepping.taken

    await db.create_all()  # the first connection asks more than the others
    taken = step = 0
    async with asyncio.timeout(60):
        while taken >= step:
            step += 1
            taken = await asyncio.create_task(cancelled(step))
            await until(lambda: pool(db).checkedout() == 0)  # a connection may be closed later than its task ends
        found = {int(user.name[5:]) for user in await stack.users(db).get_page(limit=10_000)}
    assert step > 5
    assert {2 * step, 2 * step + 1} <= found, "the last one was not cancelled"
    assert {n // 2 for n in found if n % 2} == {n // 2 for n in found if not n % 2}
    gc.collect()
    await stack.users(db).create(a_user(0))
