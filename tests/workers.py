"""What the tests run in processes of their own: python -m tests.workers NAME ARGUMENTS"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from database.context import DbContext
from database.context_async import DbContextAsync
from database.models import UserDb
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync

COUNTERS = 4  # tasks or threads in each process


def count(url: str, id: str, times: str) -> None:
    """Threads count up the number that is a user's name."""
    with DbContext(url) as db:

        def count_up() -> None:
            for _ in range(int(times)):
                with db.transaction() as tx:
                    users = UserRepository(tx)
                    user = users.get_by_id(int(id))
                    assert user
                    user.name = str(int(user.name) + 1)
                    users.update(user)

        with ThreadPoolExecutor(COUNTERS) as pool:
            for done in [pool.submit(count_up) for _ in range(COUNTERS)]:
                done.result()


async def count_async(url: str, id: str, times: str) -> None:
    """Tasks count up the number that is a user's name."""
    async with DbContextAsync(url) as db:

        async def count_up() -> None:
            for _ in range(int(times)):
                async with db.transaction() as tx:
                    users = UserRepositoryAsync(tx)
                    user = await users.get_by_id(int(id))
                    assert user
                    user.name = str(int(user.name) + 1)
                    await users.update(user)

        await asyncio.gather(*(count_up() for _ in range(COUNTERS)))


def open_files(number: str) -> None:
    """Open each new file that comes in, together with others, and use it at once."""
    for path in sys.stdin:
        with DbContext(f"sqlite:///{path.strip()}") as db:
            db.create_all()
            user = UserRepository(db).create(UserDb(name="Ada", email=f"ada{number}@example.com"))
        print(user.id, flush=True)


async def open_files_async(number: str) -> None:
    """Open each new file that comes in, together with others, and use it at once."""
    for path in sys.stdin:
        async with DbContextAsync(f"sqlite+aiosqlite:///{path.strip()}") as db:
            await db.create_all()
            user = await UserRepositoryAsync(db).create(UserDb(name="Ada", email=f"ada{number}@example.com"))
        print(user.id, flush=True)


def create(url: str, tag: str) -> None:
    """Create users without end, and print the id of each once it is stored."""
    with DbContext(url) as db:
        users, number = UserRepository(db), 0
        while number := number + 1:
            print(users.create(UserDb(name="Ada", email=f"{tag}{number}@example.com")).id, flush=True)


async def create_async(url: str, tag: str) -> None:
    """Create users without end, and print the id of each once it is stored."""
    async with DbContextAsync(url) as db:
        users, number = UserRepositoryAsync(db), 0
        while number := number + 1:
            print((await users.create(UserDb(name="Ada", email=f"{tag}{number}@example.com"))).id, flush=True)


if __name__ == "__main__":
    work = globals()[sys.argv[1]](*sys.argv[2:])
    if asyncio.iscoroutine(work):
        asyncio.run(work)
