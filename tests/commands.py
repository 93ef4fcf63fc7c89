"""Alembic commands, each in a process of its own."""

import os
import shutil
from contextlib import redirect_stdout
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

from alembic.config import main

ROOT = Path(__file__).parents[1]
# Importing takes most of a command's time. The fork server does it only once.
processes = get_context("forkserver")
processes.set_forkserver_preload(["tests.commands", "psycopg", "pymysql"])


def run(command: str, folder: Path, url: str) -> str:
    """Return what a command prints, such as "upgrade head". Raise what it raises."""
    os.environ["DB_SYNC_CONNECTION_STRING"] = url
    # Nobody listens here. The synchronous URL wins.
    os.environ["DB_CONNECTION_STRING"] = "postgresql+asyncpg://nobody@127.0.0.1:1/name"
    os.chdir(folder)
    with redirect_stdout(StringIO()) as output:
        main(["--raiseerr", *command.split()])
    return output.getvalue()


def copy_of_template(folder: Path) -> Path:
    """Copy the template, without its tests and dot-files."""
    ignore = shutil.ignore_patterns(".*", "*.db*", "tests")
    return shutil.copytree(ROOT, folder, ignore=ignore)
