"""main.py and alembic as commands: the demo on every database, and two lines for whatever is refused."""

import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import URL, create_engine, make_url, text

from tests.commands import ALEMBIC, MAIN, ROOT, SECRET, Command, at_once, copy_of_template, forked, run, to
from tests.conftest import DRIVERS, SYNC
from tests.servers import Server

ASYNC = [driver for driver, is_async in DRIVERS.values() if is_async]
SERVED_ASYNC = ASYNC[1:]
SERVED = [name for name in DRIVERS if "sqlite" not in name]
STORY = r"""Database \S+: schema at head
Created  user (\d+): Ada Lovelace <(ada\.\w+@example\.com)>
Read     user \1 by e-mail: tax account TAX-\w+, salaries 4200\.00 \+ 150\.50
Updated  user \1: now Ada King, version 2
Listed   1 user\(s\) from id \1 on: Ada King
Deleted  user \1: gone, tax account and salaries with it
"""
NewUrl = Callable[[str], str]


def execute(url: URL, *statements: str) -> list[list[object]]:
    """Run statements through the sync driver, and return the rows of each."""
    engine = create_engine(url.set(drivername=SYNC[url.get_backend_name()]), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        results = [connection.execute(text(statement)) for statement in statements]
        rows = [list[object](result) if result.returns_rows else [] for result in results]
    engine.dispose()
    return rows


def demo_at(url: str | URL) -> Command:
    return Command(MAIN, to(url))


@pytest.mark.parametrize("driver", ASYNC)
def test_tells_the_story_twice_and_leaves_nothing_behind(new_url: NewUrl, tmp_path: Path, driver: str) -> None:
    url = new_url(driver)
    for program in (run, forked):
        outcome = program(Command(MAIN, to(url), tmp_path))
        assert re.fullmatch(STORY, outcome.succeeded()), outcome.out
        assert outcome.err == ""
    selects = [f"SELECT id FROM {table}" for table in ("users", "tax_accounts", "salaries")]
    assert execute(make_url(url), *selects) == [[], [], []]


def test_writes_its_file_where_it_is_started(tmp_path: Path) -> None:
    assert re.fullmatch(STORY, run(Command(MAIN, {}, tmp_path)).succeeded())
    assert [file.name for file in tmp_path.iterdir()] == ["example.db"]


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    project = copy_of_template(tmp_path / "project")
    with (project / "application.py").open("a") as application:
        application.write("\n\nasync def run(users: object) -> None:\n    raise LookupError('a bug')\n")
    outcome = run(Command((sys.executable, "main.py"), {}, project))
    assert outcome.status == 1
    assert outcome.err.startswith("Traceback")
    assert "LookupError: a bug" in outcome.err


Connecting = Callable[[str, str], Command]


@pytest.fixture
def connecting(tmp_path: Path) -> Connecting:
    """A function that returns the command that connects through a driver: main.py if it is async, else alembic."""
    spare = f"sqlite:///{tmp_path}/spare.db"  # what migrates there, so that the async driver comes to its turn

    def connecting(name: str, rest: str) -> Command:
        driver, is_async = DRIVERS[name]
        url = f"{driver}://{rest}"
        if is_async:
            return Command(MAIN, to(url) | {"DB_SYNC_CONNECTION_STRING": spare})
        return Command((*ALEMBIC, "current"), {"DB_SYNC_CONNECTION_STRING": url})

    return connecting


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid"])
def test_no_server_there(connecting: Connecting, name: str, host: str) -> None:
    forked(connecting(name, f"u:{SECRET}@{host}/db")).refused(url=rf"://u:\*\*\*@{host}/db")


def test_a_host_that_accepts_and_never_answers(connecting: Connecting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        for_asyncpg = {"asyncpg": "timeout"}
        options = {name: for_asyncpg.get(name, "connect_timeout") for name in SERVED}
        commands = [connecting(name, f"u:{SECRET}@{host}/db?{option}=2") for name, option in options.items()]
        for outcome in at_once(*commands):
            outcome.refused(url=rf"://u:\*\*\*@{host}/db")


@pytest.mark.parametrize("name", SERVED)
def test_an_option_that_the_driver_does_not_know(connecting: Connecting, new_url: NewUrl, name: str) -> None:
    option = "sslmode=prefer" if name == "asyncpg" else "nonsense=1"
    address = new_url(DRIVERS[name][0]).partition("://")[2]
    forked(connecting(name, f"{address}?{option}")).refused(option.partition("=")[0], address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        f"postgres://u:{SECRET}@127.0.0.1:1/db",
        f"postgresql+asyncpg://u:{SECRET}@127.0.0.1:port/db",
        f"postgresql+asyncpg://u:p@{SECRET}@127.0.0.1:1/db",
        f"postgresql+asyncpg://u:p@{SECRET}/@127.0.0.1:1/db",
        f"postgresql+asyncpg://u:p@{SECRET}:@127.0.0.1:1/db",
        f"postgresql+asyncpg://u:p@{SECRET}?@127.0.0.1:1/db",
        f"postgresql+asyncpg://u:p@{SECRET}#@127.0.0.1:1/db",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true",
        "sqlite+aiosqlite:////no/such/folder/x.db",
        f"mysql+aiomysql://u:{SECRET}@127.0.0.1:1",
    ],
)
def test_an_unusable_url_or_file(url: str) -> None:
    for outcome in at_once(demo_at(url), Command((*ALEMBIC, "current"), to(url))):
        outcome.refused()


def test_a_file_that_is_no_database() -> None:
    forked(demo_at(f"sqlite+aiosqlite:///{ROOT}/README.md")).refused("not a database", "README.md")


def test_an_async_url_in_the_sync_stack_and_the_reverse(tmp_path: Path) -> None:
    wrong = f"postgresql+asyncpg://u:{SECRET}@127.0.0.1:1/db"
    forked(Command(MAIN, {"DB_SYNC_CONNECTION_STRING": wrong})).refused("async driver")
    forked(demo_at(f"sqlite:///{tmp_path}/x.db")).refused("async driver")


@pytest.mark.parametrize(("driver", "missing"), [("postgresql+asyncpg", "asyncpg"), ("mysql+aiomysql", "pymysql")])
def test_a_driver_that_is_not_installed(tmp_path: Path, driver: str, missing: str) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{missing}'\")")
    variables = to(f"{driver}://u:{SECRET}@127.0.0.1:1/db") | {"PYTHONPATH": str(tmp_path)}
    if missing in driver:  # let the sync driver come through
        variables["DB_SYNC_CONNECTION_STRING"] = f"sqlite:///{tmp_path}/spare.db"
    run(Command(MAIN, variables)).refused(f"No module named '{missing}'", r"://u:\*\*\*@127.0.0.1:1/db")


class Role(NamedTuple):
    server: Server
    url: URL


NewRole = Callable[[str, str, bool], Role]


@pytest.fixture
def new_role(request: pytest.FixtureRequest) -> NewRole:
    """A function that returns a role with these rights to a new database, empty or with its schema at head."""

    def make(driver: str, rights: str, is_at_head: bool) -> Role:
        is_mysql = driver.startswith("mysql")
        server: Server = request.getfixturevalue("mariadb" if is_mysql else "postgres")
        name = f"for_{os.urandom(4).hex()}"  # not test_...: in those MariaDB lets everybody write
        server.execute(f"CREATE DATABASE {name}")
        owner = make_url(server.url(driver, name))
        if is_at_head:
            forked(Command((*ALEMBIC, "upgrade", "head"), to(owner))).succeeded()
        role, tables = (f"{name}@localhost", f"{name}.*") if is_mysql else (name, "ALL TABLES IN SCHEMA public")
        execute(owner, f"CREATE USER {role}", f"GRANT {rights} ON {tables} TO {role}")
        return Role(server, owner.set(username=name, password=None))

    return make


@pytest.mark.parametrize("driver", SERVED_ASYNC)
def test_a_wrong_password(new_role: NewRole, driver: str) -> None:
    server, url = new_role(driver, "SELECT", False)
    if driver.startswith("postgres"):  # which trusts everybody in the tests
        rules = server.folder / "pg_hba.conf"
        rules.write_text(f"host all {url.username} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        server.execute("SELECT pg_reload_conf()")
    forked(demo_at(url.set(password=SECRET))).refused("denied|password", rf"{url.username}:\*\*\*@")


# With the schema at head it is the application that is refused, else Alembic.
@pytest.mark.parametrize("is_at_head", [True, False])
@pytest.mark.parametrize("driver", SERVED_ASYNC)
def test_a_role_that_may_only_read(new_role: NewRole, driver: str, is_at_head: bool) -> None:
    forked(demo_at(new_role(driver, "SELECT", is_at_head).url)).refused("denied", driver.partition("+")[0])


@pytest.mark.parametrize("is_at_head", [True, False])
@pytest.mark.parametrize("driver", SERVED_ASYNC)
def test_a_read_only_server(new_role: NewRole, driver: str, is_at_head: bool) -> None:
    server, url = new_role(driver, "ALL", is_at_head)
    if driver.startswith("mysql"):
        on, off = "SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0"
    else:
        on = f"ALTER DATABASE {url.database} SET default_transaction_read_only = on"
        off = on.replace("= on", "= off")
    server.execute(on)
    try:
        forked(demo_at(url)).refused("read-only", driver.partition("+")[0])
    finally:
        server.execute(off)


@pytest.mark.parametrize("is_at_head", [True, False])
def test_a_read_only_file(new_url: NewUrl, is_at_head: bool) -> None:
    url = new_url("sqlite+aiosqlite")
    words = ("upgrade", "head") if is_at_head else ("current",)
    forked(Command((*ALEMBIC, *words), to(url))).succeeded()
    forked(demo_at(url.replace(":///", ":///file:") + "?mode=ro&uri=true")).refused("readonly", ".db")


@pytest.mark.parametrize(("is_at_head", "blocks"), [(True, 80), (False, 40)])
def test_a_full_disk(new_url: NewUrl, is_at_head: bool, blocks: int) -> None:
    """The limit to a file's size, in blocks of 512 bytes, needs no disk of its own."""
    url = new_url("sqlite+aiosqlite")
    if is_at_head:
        forked(Command((*ALEMBIC, "upgrade", "head"), to(url))).succeeded()
    run(Command(("sh", "-c", f'ulimit -f {blocks}; exec "$0" "$@"', *MAIN), to(url))).refused("full|disk", ".db")
