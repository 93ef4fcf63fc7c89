"""Measures this template beside what else people use, and prints one table.

Every peer works on the same database in the same way. They take turns, round by round, so that a slow moment of the
machine meets them all; a ratio is the median of the rounds' ratios.
"""

import argparse
import asyncio
import gc
import itertools
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import URL, delete, make_url

from database.context import DbContext
from database.models import UserDb
from repositories.user_repository import UserRepository
from tests.benchmarks import POOL_SIZE, Peer, values
from tests.benchmarks.growth import growth, start_up
from tests.benchmarks.peewee_peer import Peewee, PeeweeAsync
from tests.benchmarks.piccolo_peer import Piccolo
from tests.benchmarks.raw import DRIVERS
from tests.benchmarks.sqlalchemy_peers import BUILT_ON_SQLALCHEMY
from tests.benchmarks.tortoise_peer import TortoisePeer
from tests.servers import MariaDB, Postgres, Server

PEERS: tuple[type[Peer], ...] = (*BUILT_ON_SQLALCHEMY, *DRIVERS, TortoisePeer, Piccolo, Peewee, PeeweeAsync)
OURS = PEERS[0].name


class Stack(NamedTuple):
    database: str
    driver: str
    is_async: bool

    def __str__(self) -> str:
        return f"{self.database}, {self.driver.partition('+')[2] or 'sqlite3'}{' async' * self.is_async}"


STACKS = (
    Stack("SQLite", "sqlite", False),
    Stack("SQLite", "sqlite+aiosqlite", True),
    Stack("PostgreSQL", "postgresql+psycopg", False),
    Stack("PostgreSQL", "postgresql+psycopg", True),
    Stack("PostgreSQL", "postgresql+asyncpg", True),
    Stack("MariaDB", "mysql+pymysql", False),
    Stack("MariaDB", "mysql+aiomysql", True),
)
OPERATIONS = ("create", "get", "page of 100", "update", "delete", "64 at once", "create_many")
AT_ONCE = 64

FOOTNOTES = """
µs per call, and in brackets how many times as long as ours: above 1.00 it is slower than ours, below it is faster.
64 at once: 64 tasks or threads that each get one user, on a pool of {pool} connections, µs for each of the 64.
create_many: {many:,} users in one call. The driver alone, and Tortoise on executemany, bring no ids back.
All: the same database and the same table with the same settings (write-ahead log, synchronous FULL, foreign keys).
The SQLAlchemy ones have a pool that notices a dead connection, and an update that notices that somebody else changed
the row; the driver alone has the second only; Tortoise, Piccolo and peewee have neither.
advanced-alchemy and SQLModel read a row again after they wrote it; their updates and deletes, and
sqlalchemy-bind-manager's deletes, read it before; sqlalchemy-bind-manager's pages count all rows."""


class Settings(argparse.Namespace):
    databases: list[str]
    rounds: int
    quick: bool

    @property
    def calls(self) -> int:
        return 4 if self.quick else 40

    @property
    def many(self) -> int:
        return 100 if self.quick else 10_000


def tell(text: str) -> None:
    print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


@contextmanager
def database(name: str) -> Iterator[URL]:
    """A new and empty database, as the URL of its sync driver."""
    driver = next(stack.driver for stack in STACKS if stack.database == name)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, ExitStack() as stack:
        if name == "SQLite":
            yield make_url(f"{driver}:///{folder}/benchmark.db")
            return
        Path(folder).chmod(0o755)  # the server may run as another user
        server: Server = (Postgres if name == "PostgreSQL" else MariaDB)(Path(folder) / "data")
        stack.callback(server.stop)
        server.start()
        yield make_url(server.url(driver, server.create_database()))


class Bench:
    """The peers of one stack, on one database that is filled with users."""

    def __init__(self, stack: Stack, db: DbContext, settings: Settings) -> None:
        self.stack, self.db, self.users, self.settings = stack, db, UserRepository(db), settings
        db.drop_all()
        db.create_all()
        self.numbers = itertools.count(1_000_000)
        self.threads = ThreadPoolExecutor(AT_ONCE)
        self.results: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.ids = [user.id for user in self.users.create_many(UserDb(**values(n)) for n in range(settings.many + 100))]

    async def run(self, peers: list[Peer]) -> None:
        for peer in peers:
            await peer.open(self.db.engine.url.set(drivername=self.stack.driver))
            await self.check(peer)
        rounds = self.settings.rounds
        for n in range(-1, rounds):  # the first is to warm up
            order = peers[n % len(peers) :] + peers[: n % len(peers)]
            for operation in OPERATIONS:
                if operation == "create_many" and n % 4:
                    continue  # which takes long
                for peer in order:
                    tell(f"{self.stack}, round {n + 1} of {rounds}: {operation}, {peer.name}")
                    taken = await self.measure(peer, operation)
                    if n >= 0:
                        self.results[peer.name, operation].append(taken)
            self.remove_new()
        for peer in peers:
            await peer.close()
        self.threads.shutdown()

    def remove_new(self) -> None:
        with self.db.sessionmaker() as session:
            session.execute(delete(UserDb).where(UserDb.id > self.ids[-1]))
            session.commit()

    def some_ids(self, count: int) -> list[int]:
        """Other ones each time, spread over the table."""
        return [self.ids[next(self.numbers) * 7919 % (len(self.ids) - 100)] for _ in range(count)]

    async def result(self, peer: Peer, answer: Any) -> Any:
        return await answer if peer.is_async else answer

    async def check(self, peer: Peer) -> None:
        """See that the peer does what is measured."""
        n = next(self.numbers)
        await self.result(peer, peer.create(n))
        user = self.users.get_by_email(values(n)["email"])
        assert user, f"{peer.name} created nobody"
        found = await self.result(peer, peer.get(user.id))
        assert len(await self.result(peer, peer.page(self.ids[0]))) == 100, f"{peer.name} has another page"
        await self.result(peer, peer.update(found, "Ada"))
        user = self.users.get_by_id(user.id)
        assert user, f"{peer.name} lost the user"
        assert user.name == "Ada", f"{peer.name} updated nobody"
        await self.result(peer, peer.delete(user.id))
        assert self.users.get_by_id(user.id) is None, f"{peer.name} deleted nobody"

    async def measure(self, peer: Peer, operation: str) -> float:
        """µs per call."""
        count, calls = self.settings.calls, list[Callable[[], Any]]()
        if operation == "create":
            calls = [partial(peer.create, next(self.numbers)) for _ in range(count)]
        elif operation == "get":
            calls = [partial(peer.get, id) for id in self.some_ids(count)]
        elif operation == "page of 100":
            calls = [partial(peer.page, id) for id in self.some_ids(count // 4)]
        elif operation == "update":
            ids = {*self.some_ids(count)}
            found = [await self.result(peer, peer.get(id)) for id in ids]
            calls = [partial(peer.update, user, f"User {next(self.numbers)}") for user in found]
        elif operation == "delete":
            new = self.users.create_many(UserDb(**values(next(self.numbers))) for _ in range(count))
            calls = [partial(peer.delete, user.id) for user in new]
        elif operation == "create_many":
            first = next(self.numbers)
            for _ in range(self.settings.many):
                next(self.numbers)
            calls = [partial(peer.create_many, range(first, first + self.settings.many))]
        else:
            return await self.at_once(peer)
        gc.collect()
        start = time.perf_counter()
        if peer.is_async:
            for call in calls:
                await call()
        else:
            for call in calls:
                call()
        return (time.perf_counter() - start) / len(calls) * 1e6

    async def at_once(self, peer: Peer) -> float:
        ids = self.some_ids(AT_ONCE)
        gc.collect()
        start = time.perf_counter()
        if peer.is_async:
            await asyncio.gather(*[asyncio.create_task(peer.get(id)) for id in ids])
        else:
            list(self.threads.map(peer.get, ids))
        return (time.perf_counter() - start) / AT_ONCE * 1e6

    def rows(self) -> Iterator[list[str]]:
        for name in dict.fromkeys(peer.name for peer in PEERS):
            row = [str(self.stack), name]
            for operation in OPERATIONS:
                times, ours = self.results.get((name, operation)), self.results[OURS, operation]
                if times:
                    ratio = statistics.median(theirs / our for theirs, our in zip(times, ours, strict=True))
                    row.append(f"{statistics.median(times):,.0f} ({ratio:.2f})")
                else:
                    row.append("-")
            yield row


def show(head: list[str], body: list[list[str]]) -> None:
    """Print a table, which is Markdown too."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *body, strict=True)]
    for row in [head, ["-" * width for width in widths], *body]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def main() -> None:
    names = list(dict.fromkeys(stack.database for stack in STACKS))
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "databases", nargs="*", help=f"which of {', '.join(names)}; all that are there, if none is named"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything runs")
    settings = parser.parse_args(namespace=Settings())
    if not {*settings.databases} <= {*names}:
        parser.error(f"the databases are {', '.join(names)}")
    if settings.quick:
        settings.rounds = 1
    wanted = settings.databases or [name for name in names if name != "MariaDB" or MariaDB.program("mariadbd")]

    body: list[list[str]] = []
    grown: dict[str, dict[str, str]] = defaultdict(dict)
    for name in wanted:
        with database(name) as url:
            for stack in STACKS:
                if stack.database == name:
                    kinds = [peer for peer in PEERS if peer.is_async == stack.is_async]
                    peers = [peer() for peer in kinds if not peer.drivers or stack.driver in peer.drivers]
                    with DbContext(url) as db:
                        bench = Bench(stack, db, settings)
                        asyncio.run(bench.run(peers))
                    body += bench.rows()
            tell(f"{name}: a million rows")
            thousands = 12 if settings.quick else 1_000
            for row, value in growth(url, settings.rounds, thousands, settings.many).items():
                grown[row][name] = value
            if name == "SQLite":
                tell("starting up")
                for row, value in start_up(url, settings.rounds).items():
                    grown[row][name] = value
    tell("")
    show(["database", "through", *OPERATIONS], body)
    print(FOOTNOTES.format(pool=POOL_SIZE, many=settings.many))
    for peer in PEERS:
        if peer.why_not:
            print(f"- {peer.name} {peer.why_not}.")
    print()
    show(
        ["this template", *wanted], [[row, *[cells.get(name, "-") for name in wanted]] for row, cells in grown.items()]
    )


if __name__ == "__main__":
    main()
