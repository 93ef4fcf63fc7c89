"""main.py as a command, and what main.py and alembic say at a command line when something is wrong."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import URL, func, make_url, select
from sqlalchemy.exc import ArgumentError

from database.context import DbContext
from database.models import UserDb
from database.shared import check_url, explain
from tests.conftest import SYNC

ROOT = Path(__file__).parents[1]
MAIN = (sys.executable, "-W", "error", str(ROOT / "main.py"))
ALEMBIC = (sys.executable, "-W", "error", "-m", "alembic")
ALEMBIC_PROGRAM = str(Path(sys.executable).with_name("alembic"))
SECRET = "s3cr3t"
NO_SERVER = f"u:{SECRET}@127.0.0.1:1/db"  # nobody listens on port 1


class Command(NamedTuple):
    """What a person types: a program with its arguments, with which environment variables, where."""

    words: tuple[str, ...]
    variables: dict[str, str]
    folder: Path = ROOT


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    def succeeded(self) -> str:
        assert self.status == 0, self.err
        return self.out


def run(command: Command) -> Outcome:
    hidden = ("DB_CONNECTION_STRING", "DB_SYNC_CONNECTION_STRING")  # as on a person's machine
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        command.words,
        cwd=command.folder,
        env=environment | command.variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def at_once(*commands: Command) -> list[Outcome]:
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(run, commands))


def to(url: str | URL) -> dict[str, str]:
    return {"DB_CONNECTION_STRING": url if isinstance(url, str) else url.render_as_string(hide_password=False)}


def reading(url: str) -> DbContext:
    """Return a sync context for the database of this URL, to look at what a command did."""
    parsed = make_url(url)
    return DbContext(parsed.set(drivername=SYNC.get(parsed.get_backend_name(), "mysql+pymysql")))


# What each line of the demo has to name, beside the user's id.
STEPS = {
    "Created": ("Ada Lovelace", "@example.com"),
    "Read": ("TAX-", "4200.00", "4350.50"),
    "Updated": ("Ada King", "version 2"),
    "Listed": ("Ada King",),
    "Deleted": ("gone",),
}


def assert_told(outcome: Outcome) -> None:
    """The demo succeeded without a word on stderr, and said what it did, to whom, with which values."""
    assert (outcome.status, outcome.err) == (0, "")
    lines = {line.split()[0]: line for line in outcome.out.splitlines()}
    created = re.search(r"user (\d+)", lines["Created"])
    assert created
    for step, values in STEPS.items():
        assert re.search(rf"\b{created[1]}\b", lines[step]), outcome.out
        for value in values:
            assert value in lines[step]


def assert_nobody_left(url: str) -> None:
    with reading(url) as db, db.sessionmaker() as session:
        assert session.scalar(select(func.count()).select_from(UserDb)) == 0


@pytest.mark.parametrize(
    "drivers",
    [
        ("sqlite+aiosqlite", "sqlite+aiosqlite"),
        ("postgresql+asyncpg", "postgresql+psycopg"),
        ("mysql+aiomysql", "mysql+asyncmy"),
    ],
)
def test_runs_again_and_again_on_every_driver_from_any_folder(
    new_url: Callable[[str], str], tmp_path: Path, drivers: tuple[str, ...]
) -> None:
    url = new_url(drivers[0])
    for driver in drivers:
        assert_told(run(Command(MAIN, to(make_url(url).set(drivername=driver)), tmp_path)))
    assert_nobody_left(url)


def test_leaves_nothing_that_git_sees(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run(Command(("git", "clone", "--quiet", str(ROOT), str(clone)), {})).succeeded()
    run(Command((sys.executable, "main.py"), {}, clone)).succeeded()
    run(Command((sys.executable, "-m", "alembic", "check"), {}, clone)).succeeded()
    example = sqlite3.connect(clone / "example.db")
    try:
        example.execute("SELECT * FROM users")  # an open database has two more files beside it
        assert {path.name for path in clone.glob("example.db*")} == {"example.db", "example.db-wal", "example.db-shm"}
        assert run(Command(("git", "status", "--porcelain"), {}, clone)).succeeded() == ""
    finally:
        example.close()


def test_prints_no_password(new_url: Callable[[str], str]) -> None:
    """A URL may carry it among its options too."""
    first, second = [make_url(new_url("postgresql+asyncpg")) for _ in range(2)]
    urls = (first.set(password=SECRET), second.update_query_dict({"password": SECRET}))
    for outcome in at_once(*[Command(MAIN, to(url)) for url in urls]):
        assert_told(outcome)
        assert SECRET not in outcome.out


def assert_explained(outcome: Outcome, *expected: str) -> None:
    """One or two lines on stderr and exit status 1; no traceback, no password."""
    assert outcome.status == 1
    said = [line for line in outcome.err.splitlines() if not line.startswith("INFO ")]  # which Alembic logs
    assert len(said) in (1, 2), outcome.err
    assert "Traceback" not in outcome.err
    assert SECRET not in outcome.out + outcome.err
    for text in expected:
        assert text in outcome.err


def both(variables: dict[str, str]) -> list[Outcome]:
    """Run main.py and the alembic program."""
    return at_once(Command(MAIN, variables), Command((ALEMBIC_PROGRAM, "current"), variables))


def test_what_is_no_url() -> None:
    for outcome in both(to("nonsense")):
        assert_explained(outcome, "DB_CONNECTION_STRING", "not a database URL", "postgresql+asyncpg://user:password@")


@pytest.mark.parametrize(
    "url",
    [
        "",
        f"postgres://{NO_SERVER}",
        f"postgresql+asyncpg://u:{SECRET}@127.0.0.1:port/db",
        f"postgresql+asyncpg://u:p@{NO_SERVER[2:]}",  # what follows an @ in the password would count as the host
    ],
)
def test_other_things_that_are_no_url(url: str) -> None:
    with pytest.raises(ArgumentError, match=r"not a database URL.* with %-escapes") as caught:
        check_url(url, is_async=True)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg", "mysql+aiomysql", "mysql+asyncmy"])
def test_a_server_that_cannot_be_reached(new_url: Callable[[str], str], driver: str) -> None:
    url = f"{driver}://u:{SECRET}/{SECRET}@127.0.0.1:1/db"
    # the migrations work there, so that it is the async driver that can't connect
    only_async = to(url) | {"DB_SYNC_CONNECTION_STRING": new_url("sqlite")}
    for outcome in at_once(Command((ALEMBIC_PROGRAM, "current"), to(url)), Command(MAIN, only_async)):
        assert_explained(outcome, "db at 127.0.0.1:1:", "DB_CONNECTION_STRING sets the address")


@pytest.mark.parametrize(("driver", "port"), [("postgresql+psycopg", 5432), ("mysql+aiomysql", 3306)])
def test_a_port_left_out_is_named_too(driver: str, port: int) -> None:
    url = make_url(f"{driver}://u:{SECRET}@host/db")
    said = explain(OSError("nobody there"), url)
    assert said.splitlines()[0] == f"Can't use the database db at host:{port}: nobody there"


def test_a_database_that_does_not_exist(new_url: Callable[[str], str]) -> None:
    urls = [make_url(new_url(driver)).set(database="nowhere") for driver in ("postgresql+asyncpg", "mysql+aiomysql")]
    commands = [Command(MAIN, to(url)) for url in urls]
    for url, outcome in zip(urls, at_once(*commands), strict=True):
        assert_explained(outcome, f"nowhere at {url.host}:{url.port}:", "DB_CONNECTION_STRING")


def test_a_wrong_password(new_url: Callable[[str], str]) -> None:
    url = make_url(new_url("mysql+aiomysql")).set(password=SECRET)
    assert_explained(run(Command(MAIN, to(url))), "Access denied", "DB_CONNECTION_STRING")


def test_a_sqlite_file_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    file = f"{tmp_path}/nowhere/x.db"
    for outcome in both(to(f"sqlite+aiosqlite:///{file}")):
        assert_explained(outcome, file, "unable to open", "DB_CONNECTION_STRING")


def test_a_sqlite_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Not a database, but long enough to be one. " * 99)
    for outcome in both(to(f"sqlite+aiosqlite:///{file}")):
        assert_explained(outcome, str(file), "file is not a database", "DB_CONNECTION_STRING")


def test_an_async_driver_where_the_sync_one_is_due() -> None:
    outcome = run(Command(MAIN, {"DB_SYNC_CONNECTION_STRING": f"postgresql+asyncpg://{NO_SERVER}"}))
    expected = "postgresql+asyncpg is an async driver: use postgresql+psycopg here"
    assert_explained(outcome, "DB_SYNC_CONNECTION_STRING", expected)


def test_a_sync_driver_where_the_async_one_is_due(tmp_path: Path) -> None:
    lite, mysql = at_once(
        Command(MAIN, to(f"sqlite:///{tmp_path}/new.db")), Command(MAIN, to(f"mysql+pymysql://{NO_SERVER}"))
    )
    assert_explained(lite, "DB_CONNECTION_STRING", "sqlite is a sync driver: use sqlite+aiosqlite here")
    assert_explained(mysql, "DB_CONNECTION_STRING", "mysql+pymysql is a sync driver: use mysql+aiomysql here")
    assert list(tmp_path.iterdir()) == [], "it found out before it touched a database"


def test_a_database_without_a_known_driver_pair() -> None:
    with pytest.raises(ArgumentError, match=r"mssql\+aioodbc is an async driver: use one of the other kind here"):
        check_url(f"mssql+aioodbc://{NO_SERVER}", is_async=False)


# Runs a program with some modules out of reach, as if they were not installed.
WITHOUT = """
import runpy, sys

class Missing:
    def find_spec(self, name, *_):
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

missing = sys.argv.pop(1).split(",")
sys.meta_path.insert(0, Missing())
if len(sys.argv) > 1:
    runpy.run_module("alembic", run_name="__main__", alter_sys=True)
else:
    runpy.run_path("main.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("missing", "driver", "extra"),
    [("asyncpg,psycopg", "postgresql+asyncpg", "postgres"), ("aiomysql,pymysql", "mysql+aiomysql", "mysql")],
)
def test_a_driver_that_is_not_installed(new_url: Callable[[str], str], missing: str, driver: str, extra: str) -> None:
    words = (sys.executable, "-W", "error", "-c", WITHOUT, missing)
    variables = to(f"{driver}://{NO_SERVER}")
    # the migrations work here, so that it is the async driver that is missing
    only_async = variables | {"DB_SYNC_CONNECTION_STRING": new_url("sqlite")}
    for outcome in at_once(Command((*words, "current"), variables), Command(words, only_async)):
        assert_explained(outcome, "DB_CONNECTION_STRING", "is not installed", f"uv sync --extra {extra}")
