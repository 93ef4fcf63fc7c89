"""Several tasks, and cancelled ones. There is no synchronous twin of this file."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Generator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import anyio
import pytest
from sqlalchemy import event, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from database.context_async import DbContextAsync as Db
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync as Users
from tests.models import a_user
from tests.stacks.helpers import names

pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore:.* deleted while still open:ResourceWarning"),
]


async def wait_for_returned_connections(db: Any) -> None:
    while db.engine.pool.checkedout():  # noqa: ASYNC110 - the pool has no event
        await asyncio.sleep(0.001)


@pytest.fixture
async def db(url: str) -> AsyncIterator[Db]:
    """Yield a context whose pool would soon be empty if a connection were lost."""
    async with Db(url, pool_size=2, max_overflow=0, pool_timeout=10) as context:
        yield context
        async with asyncio.timeout(10):
            await wait_for_returned_connections(context)
    gc.collect()  # warns of what is still open, while the filters are in place


async def test_gathered_calls_raise_and_store_nothing(db: Db) -> None:
    for begin in (db.transaction, db.sessionmaker.begin) * 5:
        with pytest.raises((SQLAlchemyError, RuntimeError)):
            async with asyncio.timeout(30), begin() as session:
                calls = (Users(session).create(a_user(n)) for n in range(3))
                await asyncio.gather(*calls)
        assert await names(db) == []


async def test_a_call_that_is_refused_stores_nothing(db: Db) -> None:
    async with db.transaction() as session:
        calls = [Users(session).create(a_user(n)) for n in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    stored = [result.name for result in results if isinstance(result, UserDb)]
    assert stored == await names(db) == ["User 0"]


async def test_another_task_may_go_on_with_a_connection(db: Db) -> None:
    opened: list[Any] = []
    event.listen(db.engine.sync_engine, "connect", lambda *args: opened.append(args))
    async with db.transaction() as session:
        connection = await session.connection()
        for _ in range(2):
            await asyncio.create_task(connection.execute(select(UserDb)))
            await session.commit()
    assert (await names(db), len(opened)) == ([], 1)


async def test_tasks_that_outlive_the_block_leave_nothing_half_stored(db: Db) -> None:
    async def keep_inserting(session: AsyncSession) -> None:
        connection = await session.connection()
        while not over:
            with suppress(Exception):  # it is refused in many ways
                row = {"name": "late", "email": uuid4().hex}
                await connection.execute(insert(UserDb).values(row))
            await asyncio.sleep(0)

    async def keep_writing(session: AsyncSession) -> None:
        while not over:
            with suppress(Exception):
                await Users(session).create(UserDb(name="late", email=uuid4().hex))
            await asyncio.sleep(0)

    async def keep_reading(session: AsyncSession) -> None:
        while not over:
            with suppress(Exception):
                await (await session.stream(select(UserDb))).all()
            await asyncio.sleep(0)

    late = n = 0
    works: list[Any] = [keep_inserting, keep_writing, keep_reading]
    works += [lambda session: Users(session).create(a_user(n))]  # a duplicate
    for n in range(60):
        chance = random.Random(str(n))
        over, is_committed = list[bool](), False
        tasks: list[asyncio.Task[None]] = []
        async with asyncio.timeout(30):
            with suppress(Exception):
                async with db.transaction() as session:
                    await Users(session).create(a_user(n))
                    for work in chance.sample(works, 3):
                        tasks.append(asyncio.create_task(work(session)))
                    for _ in range(chance.randrange(25)):
                        await asyncio.sleep(chance.choice([0, 0, 0, 0.001]))
                    if n % 2:
                        chance.choice(tasks).cancel()
                    if chance.random() < 0.5:
                        raise ZeroDivisionError
                is_committed = True
            await asyncio.sleep(0.002)
        over.append(True)
        await asyncio.gather(*(Users(db).create(a_user(n + k)) for k in (100, 200)))
        ended = asyncio.gather(*tasks, return_exceptions=True)
        _, waiting = await asyncio.wait([ended], timeout=10)  # aiosqlite may hang
        assert not waiting or db.engine.driver == "aiosqlite"
        found = await names(db)
        assert (f"User {n}" in found) is is_committed
        assert is_committed or found.count("late") == late
        late = found.count("late")


class Interrupted:
    """Awaits some work, and calls interrupt() when it has been suspended n times."""

    def __init__(self, work: Any, n: int, interrupt: Any) -> None:
        self.work, self.n, self.interrupt, self.steps = work, n, interrupt, 0

    def __await__(self) -> Generator[Any, Any]:
        resume: Any = self.work.send
        value: Any = None
        while True:
            try:
                awaited = resume(value)
            except StopIteration:
                return
            self.steps += 1
            if self.steps == self.n:
                asyncio.get_running_loop().call_soon(self.interrupt)
            try:
                resume, value = self.work.send, (yield awaited)
            except BaseException as error:
                resume, value = self.work.throw, error


# aiosqlite leaves a connection whose opening is cancelled to the garbage collector:
# https://github.com/omnilib/aiosqlite/issues/259
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("canceller", ["asyncio", "AnyIO"])
async def test_a_transaction_cancelled_at_any_step_is_stored_whole_or_not_at_all(
    db: Db, canceller: str
) -> None:
    async def work(n: int) -> None:
        async with db.transaction() as session:
            users = Users(session)
            await users.create(a_user(2 * n))
            async with session.begin_nested():
                await users.get_page(limit=1)
                await users.create(a_user(2 * n + 1))

    async def cancelled(n: int) -> int:
        task, scope = asyncio.current_task(), anyio.CancelScope()
        assert task
        cancel = scope.cancel if canceller == "AnyIO" else task.cancel
        interrupted = Interrupted(work(n), n, cancel)
        with suppress(asyncio.CancelledError), scope:
            await interrupted
        return interrupted.steps

    await names(db)  # the first connection takes more steps than the others
    n = steps = 0
    async with asyncio.timeout(60):
        while steps >= n:
            n += 1
            steps = await asyncio.create_task(cancelled(n))
            await wait_for_returned_connections(db)
    found = {int(name.removeprefix("User ")) for name in await names(db)}
    assert {2 * n, 2 * n + 1} <= found, "the last one was not cancelled"
    assert {n // 2 for n in found if n % 2} == {n // 2 for n in found if not n % 2}
    assert n > 5
