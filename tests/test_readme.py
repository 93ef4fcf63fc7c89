"""Every command, snippet and table of the README, run as it stands there by somebody who just cloned the repository."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from database.models import Base
from tests.conftest import missing
from tests.servers import free_port

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


class Block(NamedTuple):
    section: str
    language: str
    code: str


def blocks() -> list[Block]:
    found, section = [], ""
    for heading, language, code in re.findall(r"^#+ ([^\n]+)$|^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        section = heading or section
        if code:
            found.append(Block(section, language, code))
    return found


BLOCKS = blocks()
used: set[Block] = set()


def block(section: str, language: str, number: int = 0) -> str:
    chosen = [block for block in BLOCKS if block[:2] == (section, language)][number]
    used.add(chosen)
    return chosen.code


def copy_project(folder: Path) -> Path:
    """What a clone would hold, with the changes that are not committed yet."""
    files = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in files.split():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(command: str | list[str], folder: Path, **variables: str) -> str:
    """Run as typed and return what it prints; fail with its output if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    command = ["bash", "-ec", command] if isinstance(command, str) else command
    done = subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(code: str, folder: Path, **variables: str) -> str:
    (folder / "snippet.py").write_text(code)
    return run([".venv/bin/python", "-W", "error", "snippet.py"], folder, **variables)


@pytest.fixture(scope="module", autouse=True)
def uv() -> None:
    if not shutil.which("uv"):
        missing("the README's commands need uv")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the demo has run."""
    folder = copy_project(tmp_path_factory.mktemp("clone"))
    demo, _ = block("Run it", "sh").splitlines()
    (folder / "printed").write_text(run(demo, folder))
    return folder


@pytest.fixture
def copy(clone: Path, tmp_path: Path) -> Path:
    """A clone to change."""
    shutil.copytree(clone, tmp_path / "copy", ignore=shutil.ignore_patterns(".venv"))
    (tmp_path / "copy/.venv").symlink_to(clone / ".venv")
    return tmp_path / "copy"


def test_the_demo_prints_what_the_readme_says(clone: Path) -> None:
    pattern = re.escape(block("Run it", "text")).replace("5f0c9a1e", "[0-9a-f]{8}")
    assert re.fullmatch(pattern, (clone / "printed").read_text())


def test_the_gate_runs_the_test_command() -> None:
    _, tests = block("Run it", "sh").splitlines()
    assert f"\n{tests}\n" in (ROOT / ".ci/run").read_text()


def test_the_map_names_every_file() -> None:
    named = set(re.findall(r"\w+\.py", block("The map", "text")))
    there = {path.name for pattern in ("*.py", "database/*.py", "repositories/*.py") for path in ROOT.glob(pattern)}
    assert named == there - {"__init__.py"}


def test_without_uv(tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    printed = run(block("Run it", "sh", 1).replace("python -m venv", f"{sys.executable} -m venv"), folder)
    assert "Deleted  user 1: gone" in printed


def test_async_snippet(clone: Path) -> None:
    assert run_python(block("Async code", "python"), clone) == "True\n"


def test_sync_snippets_in_order(copy: Path) -> None:
    sections = ("Sync code", "Several calls, all or nothing", "Load related rows")
    sync, transaction, loading = (block(section, "python") for section in sections)
    assert run_python(sync + transaction + loading, copy) == "True True\n"
    ada = "UserDb(name='Ada', email='a@b', salaries=[Salary(amount=7, paid_on=date(2026, 1, 1))])"
    imports = "from datetime import date\n\nfrom database.models import Salary\n"
    printed = run_python(f"{imports}{sync}users.create({ada})\n{transaction}{loading}", copy)
    assert printed == "True True\nAda [Decimal('7.00')]\n"


def test_run_snippet(copy: Path) -> None:
    rename = block("When one machine is not enough", "python")
    assert run_python(rename, copy) == "2\n"
    assert run_python(rename, copy) == "2\n"


def test_the_benchmark_starts(tmp_path: Path) -> None:
    command = re.findall(r"`(uv run .*tests\.benchmarks)`", README)[0]
    assert "--rounds" in run(f"{command} --help", copy_project(tmp_path))


def test_migration_commands(copy: Path) -> None:
    (copy / "example.db").unlink()
    assert run(block("Migrations", "sh"), copy) == "No new upgrade operations detected.\n"


def test_a_model_of_your_own(copy: Path) -> None:
    model, repository, use = (block("Migrations", "python", number) for number in range(3))
    with (copy / "database/models.py").open("a") as models:
        models.write("\n\n" + model)
    (copy / "repositories/company_repository.py").write_text(repository)
    run(block("Migrations", "sh", 1), copy)
    assert run_python(use, copy) == "1\n"
    run("uv run alembic check", copy)


def test_postgresql(copy: Path, new_url: Callable[[str], str]) -> None:
    url = new_url("postgresql+asyncpg")
    commands, urls = re.subn(r'(?<=DB_CONNECTION_STRING=")[^"]+', url, block("PostgreSQL and MySQL", "sh"))
    assert urls == 1
    assert "Database postgresql+asyncpg://" in run(commands, copy)


def test_mysql(copy: Path, new_url: Callable[[str], str]) -> None:
    command, url = re.findall(r"^For MySQL and MariaDB it is `(.+?)` and `(.+?)`", README, re.MULTILINE)[0]
    run(command, copy)
    given = new_url("mysql+aiomysql")
    assert url.partition("://")[0] == given.partition("://")[0]
    assert f"Database {given}" in run("uv run main.py", copy, DB_CONNECTION_STRING=given)


def test_the_diagram_shows_the_models() -> None:
    diagram = block("The tables", "mermaid")
    drawn = {
        table: re.findall(r"(\w+) (\w+)", re.sub(r" (PK|FK|UK)\b,?", "", columns))
        for table, columns in re.findall(r"^    (\w+) \{(.*)\}$", diagram, re.MULTILINE)
    }
    types = {"BigInteger": "bigint", "String": "varchar", "Integer": "int", "Money": "numeric", "Date": "date"}
    assert drawn == {
        table.name: [(types[type(column.type).__name__], column.name) for column in table.columns]
        for table in Base.metadata.tables.values()
    }


COPY_ROWS = [
    [cell.strip() for cell in row.split("|")[1:-1]]
    for row in README.partition("## What to copy")[2].partition("\n## ")[0].splitlines()
    if row.startswith("|")
][2:]
FILES = {goal: re.findall(r"`([^`]+)`", files) for goal, files, *_ in COPY_ROWS}
PACKAGES = {goal: packages.strip("`").removeprefix("--dev ") for goal, _, packages, _ in COPY_ROWS}

PYTEST_INI = """
[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
"""
USE_SYNC = """
from database.context import DbContext
from database.models import UserDb
from repositories.user_repository import UserRepository

with DbContext("sqlite:///own.db") as db:
    db.create_all()
    user = UserRepository(db).create(UserDb(name="Ada", email="ada@example.com"))
    print(UserRepository(db).get_by_id(user.id).name)
"""
USE_ASYNC = """
import asyncio
from database.context_async import DbContextAsync
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync

async def main():
    async with DbContextAsync("sqlite+aiosqlite:///own.db") as db:
        await db.create_all()
        user = await UserRepositoryAsync(db).create(UserDb(name="Ada", email="ada@example.com"))
        print((await UserRepositoryAsync(db).get_by_id(user.id)).name)

asyncio.run(main())
"""


def carry(goals: list[str], folder: Path) -> None:
    """Copy the files of these rows into an empty folder with just their packages."""
    for goal in goals:
        for pattern in FILES[goal]:
            for path in ROOT.glob(pattern):
                (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / path.relative_to(ROOT))
    packages = [package for goal in goals for package in PACKAGES[goal].split()]
    run(["uv", "venv", "--quiet", "--python", sys.executable], folder)
    run(["uv", "pip", "install", "--quiet", *packages], folder)


@pytest.mark.parametrize(
    ("goal", "uses"),
    [
        ("async data access", [USE_ASYNC]),
        ("sync data access", [USE_SYNC]),
        ("both", [USE_SYNC, USE_ASYNC.replace("ada@", "eva@")]),
    ],
)
def test_copied_files_work_alone(goal: str, uses: list[str], tmp_path: Path) -> None:
    carry([goal], tmp_path)
    for use in uses:
        assert run_python(use, tmp_path) == "Ada\n"


@pytest.mark.parametrize("goal", ["async data access", "sync data access"])
def test_copied_migrations_work(goal: str, tmp_path: Path) -> None:
    carry([goal, "migrations for any of these"], tmp_path)
    (tmp_path / "database/migrations/versions").mkdir()
    run(".venv/bin/alembic revision --autogenerate -m first && .venv/bin/alembic upgrade head", tmp_path)
    assert "users" in next(tmp_path.glob("database/migrations/versions/*first.py")).read_text()
    run(".venv/bin/alembic check", tmp_path)


def test_copied_test_databases_work() -> None:
    with TemporaryDirectory() as name:  # not pytest's, which is closed to the user that PostgreSQL runs as
        folder = Path(name)
        carry(["both", "the tests' databases"], folder)
        (folder / "pyproject.toml").write_text(PYTEST_INI)
        (folder / "tests/test_own.py").write_text(
            "async def test_nobody_yet(users):\n    assert await users.get_page() == []\n"
        )
        assert "8 passed" in run(".venv/bin/python -m pytest tests", folder)


def test_rolled_back_contexts(tmp_path: Path) -> None:
    carry(["both"], tmp_path)
    run("uv pip install --quiet pytest pytest-asyncio", tmp_path)
    (tmp_path / "pyproject.toml").write_text(PYTEST_INI)
    (tmp_path / "test_own.py").write_text(
        block("Test your own code", "python")
        + """

from database.models import UserDb
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync


@pytest.mark.parametrize("time", [1, 2])
def test_sync(db, time):
    with db.transaction() as tx:
        UserRepository(tx).create(UserDb(name="Ada", email="ada@example.com"))
    assert len(UserRepository(db).get_page()) == 1


@pytest.mark.parametrize("time", [1, 2])
async def test_async(db_async, time):
    async with db_async.transaction() as tx:
        await UserRepositoryAsync(tx).create(UserDb(name="Ada", email="ada@example.com"))
    assert len(await UserRepositoryAsync(db_async).get_page()) == 1
"""
    )
    assert "4 passed" in run(".venv/bin/python -m pytest -W error", tmp_path)


@pytest.fixture
def serve(copy: Path) -> Iterator[Callable[[str, str, str], str]]:
    """A function that runs a recipe's application as a real server and returns its address."""
    servers = []

    def start(packages: str, code: str, command: str) -> str:
        (copy / "web.py").write_text(code)
        run(f"uv pip install --quiet {packages}", copy)
        port = free_port()
        with (copy / "web.log").open("w") as log:
            servers.append(subprocess.Popen([*command.format(port=port).split()], cwd=copy, stdout=log, stderr=log))
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.05)
        raise RuntimeError((copy / "web.log").read_text())

    yield start
    for server in servers:
        server.send_signal(signal.SIGINT)
        server.wait(20)
    assert "Traceback" not in (copy / "web.log").read_text()


def call(url: str, json: Any = None) -> tuple[int, str]:
    request = Request(
        url, None if json is None else str(json).replace("'", '"').encode(), {"Content-Type": "application/json"}
    )
    try:
        with urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, ""


@pytest.mark.parametrize(
    ("section", "packages", "command"),
    [
        ("In FastAPI", "fastapi[standard]", "uv run fastapi run web.py --port {port}"),
        ("In Flask", "flask", "uv run flask --app web run --port {port}"),
    ],
)
def test_in_a_framework(serve: Callable[[str, str, str], str], section: str, packages: str, command: str) -> None:
    address = serve(packages, block(section, "python"), command)
    ada, eva = ({"name": name, "email": f"{name}@example.com"} for name in ("Ada", "Eva"))
    assert call(f"{address}/users/1")[0] == 404
    status, ids = call(f"{address}/users", [ada])
    assert status == 201
    id = int(ids.strip("[]\n "))
    assert call(f"{address}/users/{id}")[0] == 200
    assert call(f"{address}/users", [eva, ada])[0] == 409
    assert call(f"{address}/users/{id + 1}")[0] == 404, "one request is one transaction: Eva was not stored"
    assert call(f"{address}/users", [{"name": "", "email": "x@example.com"}])[0] == 422
    assert call(f"{address}/users", [{"name": "Ida"}])[0] == 422
    assert call(f"{address}/users", [eva])[0] == 201


def test_every_block_is_run(request: pytest.FixtureRequest) -> None:
    if request.session.testscollected > len(BLOCKS) and not request.config.option.keyword:
        assert [block for block in BLOCKS if block not in used] == []
