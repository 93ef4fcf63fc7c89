"""python main.py, as a person runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, copy_of_template
from tests.conftest import DRIVERS_ASYNC, NewUrl

STORY = r"""Database .+: schema up to date
Created  user \d+: Ada Lovelace <ada\.[0-9a-f-]+@example\.com>
Read     user \d+ by e-mail: salary 4200\.00
Updated  user \d+: now Ada King, version 2
Deleted  user \d+: True
"""


def run_main(url: str, folder: Path = ROOT) -> Any:
    command = [sys.executable, "-W", "error", "main.py"]
    env = os.environ | {"DB_CONNECTION_STRING": url}
    options: Any = {"cwd": folder, "env": env, "text": True, "timeout": 60}
    return subprocess.run(command, capture_output=True, **options)


@pytest.mark.parametrize("driver", DRIVERS_ASYNC)
def test_migrates_and_tells_the_story(new_url: NewUrl, driver: str) -> None:
    done = run_main(new_url(driver))
    assert re.fullmatch(STORY, done.stdout), done.stderr


@pytest.mark.parametrize("driver", DRIVERS_ASYNC)
def test_a_database_that_cannot_be_reached_ends_it_in_one_line(driver: str) -> None:
    place = "//nowhere/s3cr3t" if "sqlite" in driver else "user:s3cr3t@127.0.0.1:1/name"
    done = run_main(f"{driver}://{place}")
    assert done.returncode == 1
    assert re.fullmatch("The database can't be reached: .+\n", done.stderr)
    assert "s3cr3t" not in done.stdout + done.stderr


MISTAKES = {
    "application.py": ("raise ConnectionError('mine')", "ConnectionError: mine"),
    "**/versions/*.py": ("op.execute('a mistake')", "[SQL: a mistake]"),
}


@pytest.mark.parametrize("pattern", MISTAKES)
def test_other_errors_keep_their_traceback(tmp_path: Path, pattern: str) -> None:
    mistake, message = MISTAKES[pattern]
    folder = copy_of_template(tmp_path / "project")
    [file] = folder.glob(pattern)
    code = file.read_text()
    file.write_text(code.replace("-> None:\n", f"-> None:\n    {mistake}\n", 1))
    done = run_main(f"sqlite+aiosqlite:///{tmp_path}/x.db", folder)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert message in done.stderr
