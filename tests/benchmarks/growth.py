"""How cost grows with the rows, and what starting up costs. Run with a URL, it reads a million users page by page."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import URL, String, cast, event, func, insert, literal, select
from sqlalchemy.engine.interfaces import ExecuteStyle

from database.context import DbContext
from database.models import UserDb
from repositories.user_repository import UserRepository

ROOT = Path(__file__).parent.parent.parent
PAGE = 1_000


def fill(db: DbContext, thousands: int) -> None:
    """Store this many thousands of users, without taking them through Python."""
    numbers = select(literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1).where(numbers.c.n < 1_000))
    ones, more = numbers.alias(), numbers.alias()
    number = cast((more.c.n - 1) * 1_000 + ones.c.n, String(20))
    query = select(literal("User ") + number, literal("fill") + number + "@example.com", literal(1))
    query = query.select_from(ones.join(more, more.c.n <= thousands))
    with db.sessionmaker() as session:
        session.execute(insert(UserDb).from_select(["name", "email", "version"], query))
        session.commit()


def microseconds(call: Callable[[], Any], times: int = 20) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times * 1e6


def growth(url: URL, rounds: int, thousands: int, many: int) -> dict[str, str]:
    """What a million rows change, by the name of the row in the table."""
    with DbContext(url) as db:
        db.drop_all()
        db.create_all()
        users = UserRepository(db)
        sent = 0

        def count(_c: Any, _cursor: Any, _sql: str, parameters: Any, context: Any, _many: bool) -> None:
            nonlocal sent
            sent += len(parameters) if context.execute_style is ExecuteStyle.EXECUTEMANY else 1

        event.listen(db.engine, "before_cursor_execute", count)
        users.create_many(UserDb(name="Many", email=f"many{n}@example.com") for n in range(many))
        event.remove(db.engine, "before_cursor_execute", count)

        fill(db, thousands)
        with db.sessionmaker() as session:
            last = session.scalar(select(func.max(UserDb.id))) or 0
        ratios = []
        for _ in range(rounds):
            first = microseconds(users.get_page)
            ratios.append(microseconds(lambda: users.get_page(after_id=last - 150)) / first)
        reader = [sys.executable, "-m", "tests.benchmarks.growth", url.render_as_string(hide_password=False)]
        read = json.loads(subprocess.run(reader, cwd=ROOT, check=True, capture_output=True).stdout)
        db.drop_all()
    return {
        f"page of 100 at row {thousands * 1_000:,}, first page = 1": f"{statistics.median(ratios):.2f}",
        f"memory after {read['pages_before']} pages of {PAGE:,}": f"{read['before']:.1f} MB",
        f"the most it took to read all {read['users']:,} users": f"{read['most']:.1f} MB",
        f"statements of create_many({many:,})": str(sent),
    }


def read_all(url: str) -> dict[str, float]:
    """Read all users page by page; how much memory that took at most, and how much after ten pages."""
    process = psutil.Process()
    found: dict[str, float] = {"pages_before": 10, "users": 0, "most": 0}
    with DbContext(url) as db:
        users, pages, last = UserRepository(db), 0, 0
        while page := users.get_page(after_id=last, limit=PAGE):
            pages, last = pages + 1, page[-1].id
            memory = process.memory_info().rss / 2**20
            found |= {"users": found["users"] + len(page), "most": max(found["most"], memory)}
            if pages == found["pages_before"]:
                found["before"] = memory
    return found


def start_up(url: URL, rounds: int) -> dict[str, str]:
    """What python main.py takes beyond importing the packages that it imports."""
    with DbContext(url) as db:
        db.drop_all()  # Alembic makes the tables
    environment = {"DB_CONNECTION_STRING": url.set(drivername="sqlite+aiosqlite").render_as_string()}

    def run(*command: str) -> tuple[float, str]:
        start = time.perf_counter()
        result = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
        return (time.perf_counter() - start) * 1e3, result.stdout

    listing = "import runpy, sys; runpy.run_path('main.py', run_name='__main__'); "
    listing += "print(*[name for name, module in sys.modules.items() if getattr(module.__spec__, 'name', '') == name])"
    modules = run("-c", listing)[1].splitlines()[-1].split()
    ours = {path.stem for path in ROOT.iterdir()} | {"__main__"}
    packages = [name for name in modules if name.partition(".")[0] not in ours]
    imports = f"import importlib\nfor name in {packages}: importlib.import_module(name)"
    times = [(run("main.py")[0], run("-c", imports)[0]) for _ in range(rounds)]
    whole, importing = (statistics.median(column) for column in zip(*times, strict=True))
    rest = statistics.median(both - alone for both, alone in times)
    return {
        "python main.py": f"{whole:.0f} ms",
        "of which importing its packages": f"{importing:.0f} ms",
        "of which the schema check and the demo": f"{rest:.0f} ms",
    }


if __name__ == "__main__":
    print(json.dumps(read_all(sys.argv[1])))
