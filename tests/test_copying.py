"""The README's table of what to copy: just these files, with just these packages, work in an empty folder."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.readme import README, ROOT, block, need_uv, run, run_python

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


@pytest.fixture(scope="module")
def venv() -> Iterator[Path]:
    """An environment that the tests fill one after the other: what stays in it needs no compiling again."""
    need_uv()
    with TemporaryDirectory() as folder:  # not pytest's, which is closed to the user that PostgreSQL runs as
        run(["uv", "venv", "--quiet", "--python", sys.executable, "."], Path(folder))
        yield Path(folder)


def carry(venv: Path, folder: Path, *goals: str, beside: str = "") -> None:
    """Copy the files of these rows into an empty folder with just their packages, and those beside them."""
    for goal in goals:
        for pattern in FILES[goal]:
            for path in ROOT.glob(pattern):
                (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / path.relative_to(ROOT))
    packages = [package for goal in goals for package in PACKAGES[goal].split()]
    (folder / ".venv").symlink_to(venv)
    run(["uv", "pip", "install", "--quiet", "--exact", *packages, *beside.split()], folder)


@pytest.mark.parametrize(
    ("goal", "uses"),
    [
        ("async data access", [USE_ASYNC]),
        ("sync data access", [USE_SYNC]),
        ("both", [USE_SYNC, USE_ASYNC.replace("ada@", "eva@")]),
    ],
)
def test_copied_files_work_alone(venv: Path, goal: str, uses: list[str], tmp_path: Path) -> None:
    carry(venv, tmp_path, goal)
    for use in uses:
        assert run_python(use, tmp_path) == "Ada\n"


@pytest.mark.parametrize("goal", ["async data access", "sync data access"])
def test_copied_migrations_work(venv: Path, goal: str, tmp_path: Path) -> None:
    carry(venv, tmp_path, goal, "migrations for any of these")
    (tmp_path / "database/migrations/versions").mkdir()
    run(".venv/bin/alembic revision --autogenerate -m first && .venv/bin/alembic upgrade head", tmp_path)
    assert "users" in next(tmp_path.glob("database/migrations/versions/*first.py")).read_text()
    run(".venv/bin/alembic check", tmp_path)


def test_copied_test_databases_work(venv: Path) -> None:
    with TemporaryDirectory() as name:  # not pytest's: see venv
        folder = Path(name)
        carry(venv, folder, "both", "the tests' databases")
        (folder / "pyproject.toml").write_text(PYTEST_INI)
        (folder / "tests/test_own.py").write_text(
            "async def test_nobody_yet(users):\n    assert await users.get_page() == []\n"
        )
        assert "8 passed" in run(".venv/bin/python -m pytest tests", folder)


def test_rolled_back_contexts(venv: Path, tmp_path: Path) -> None:
    carry(venv, tmp_path, "both", beside="pytest pytest-asyncio")
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
