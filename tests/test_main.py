"""python main.py, as a person runs it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import copy_of_template
from tests.conftest import DRIVERS_ASYNC

STORY = r"""Database .+: schema up to date
Created  user \d+: Ada Lovelace <ada\.\w+@example\.com>
Read     user \d+ by e-mail: salaries 4200\.00 \+ 150\.50
Updated  user \d+: now Ada King, version 2
Listed   1 user\(s\), beginning with Ada King
Deleted  user \d+: True
"""


def run_main(folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "main.py"],
        cwd=folder,
        env=os.environ | {"DB_CONNECTION_STRING": url},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("driver", DRIVERS_ASYNC)
def test_migrates_and_tells_the_story(
    tmp_path: Path, new_url: Callable[[str], str], driver: str
) -> None:
    folder, url = copy_of_template(tmp_path / "project"), new_url(driver)
    for _ in range(2):
        done = run_main(folder, url)
        assert re.fullmatch(STORY, done.stdout), done.stderr


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "mysql+aiomysql", "sqlite"])
def test_a_database_that_cannot_be_reached_ends_it_in_one_line(
    tmp_path: Path, driver: str
) -> None:
    folder = copy_of_template(tmp_path / "project")
    url = f"{driver}://user:s3cr3t@127.0.0.1:1/name"
    if driver == "sqlite":
        url = "sqlite+aiosqlite:////nowhere/s3cr3t.db"
    done = run_main(folder, url)
    assert done.returncode == 1
    assert done.stderr.startswith("The database can't be reached: ")
    assert done.stderr.count("\n") == 1
    assert "s3cr3t" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("application.py", "    tag ="),
        ("database/migrations/versions/*.py", "    op.create_table("),
    ],
)
def test_other_errors_keep_their_traceback(
    tmp_path: Path, file: str, line: str
) -> None:
    folder = copy_of_template(tmp_path / "project")
    for path in folder.glob(file):
        error = f"    raise ConnectionError('mine')\n{line}"
        path.write_text(path.read_text().replace(line, error, 1))
    done = run_main(folder, f"sqlite+aiosqlite:///{tmp_path}/x.db")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ConnectionError: mine\n")
