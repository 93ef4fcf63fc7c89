"""How long a call takes, beside what else people use: uv run --no-group dev --group bench python -m tests.benchmarks"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import URL

POOL_SIZE = 8  # ten peers, and PostgreSQL takes 100 connections


class Peer:
    """One way to store and read users; the methods are coroutines where is_async says so.

    Each call stands for itself: it takes a connection from a pool, and what it wrote is committed when it returns.
    """

    name: str
    is_async: bool
    drivers: Sequence[str] = ()  # none named: all that are sync or async, as it is
    why_not: str = ""  # what a table says where a driver is missing

    create: Callable[[int], Any]  # the n-th user
    get: Callable[[int], Any]
    page: Callable[[int], Any]  # after this id
    update: Callable[[Any, str], Any]  # what get returned, and its new name
    delete: Callable[[int], Any]
    create_many: Callable[[range], Any]

    async def open(self, url: URL) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


def values(n: int) -> dict[str, str]:
    return {"name": f"User {n}", "email": f"user{n}@example.com"}
