"""Several processes at once, and processes that are killed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from database.context import DbContext
from database.models import UserDb
from repositories.user_repository import UserRepository
from tests.conftest import DRIVERS, SYNC
from tests.workers import COUNTERS

ROOT = Path(__file__).parent.parent


def worker(name: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.workers", name, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_read_and_write_one_row_of_sqlite_lose_nothing(new_url: Callable[[str], str]) -> None:
    times = 10
    url = new_url("sqlite")
    with DbContext(url) as db:
        db.create_all()
        users = UserRepository(db)
        row = users.create(UserDb(name="0", email="counter@example.com"))
        kinds = {"count": url, "count_async": url.replace("sqlite:", "sqlite+aiosqlite:")}
        processes = [worker(kind, url, str(row.id), str(times)) for kind, url in kinds.items() for _ in range(2)]
        for process in processes:
            assert (*process.communicate(), process.returncode) == ("", "", 0)
        counter = users.get_by_id(row.id)
        assert counter
        assert counter.name == str(len(processes) * COUNTERS * times)


def test_processes_that_open_a_new_file_of_sqlite_at_the_same_moment_all_succeed(tmp_path: Path) -> None:
    processes = [worker("open_files" if number % 2 else "open_files_async", str(number)) for number in range(8)]
    try:
        for file in range(20):
            path = tmp_path / f"{file}.db"
            for process in processes:
                assert process.stdin
                process.stdin.write(f"{path}\n")
                process.stdin.flush()
            for process in processes:
                assert process.stdout
                assert process.stderr
                assert process.stdout.readline().strip().isdigit(), process.stderr.read()
            with DbContext(f"sqlite:///{path}") as db:
                assert len(UserRepository(db).get_page()) == len(processes)
        for process in processes:
            assert (*process.communicate(), process.returncode) == ("", "", 0)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("backend", ["sqlite", "postgresql", "mysql"])
def test_what_a_killed_process_said_was_stored_is_there(backend: str, new_url: Callable[[str], str]) -> None:
    """One process for each driver, killed in the middle of what it does."""
    url = new_url(SYNC[backend])
    with DbContext(url) as db:
        db.create_all()
        processes = [
            worker("create_async" if is_async else "create", url.replace(SYNC[backend], driver, 1), name)
            for name, (driver, is_async) in DRIVERS.items()
            if driver.startswith(backend)
        ]
        said: list[str] = []
        for process in processes:
            assert process.stdout
            said += [process.stdout.readline() for _ in range(10)]
        for process in processes:
            process.kill()
            with process:
                assert process.stdout
                said += process.stdout
        stored = [user.id for user in UserRepository(db).get_page(limit=1_000_000)]
        assert set(map(int, said)) <= set(stored)
        assert len(said) <= len(stored) <= len(said) + len(processes), "the last of each may not have been said"
