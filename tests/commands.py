"""Alembic commands, each in a process of its own."""

import os
import shutil
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from alembic.config import main

ROOT = Path(__file__).parents[1]
# Importing the libraries takes most of a command's time. The fork server imports them
# once and then forks for each command.
processes = get_context("forkserver")
drivers = ["postgresql.psycopg", "mysql.pymysql", "sqlite.pysqlite"]
libraries = [f"sqlalchemy.dialects.{driver}" for driver in drivers]
processes.set_forkserver_preload(["tests.commands", "psycopg", "pymysql", *libraries])


class Outcome(NamedTuple):
    """What a command returned and printed."""

    status: int | None
    out: str
    err: str

    def succeeded(self) -> str:
        """Return what the command printed. Fail the test if the command failed."""
        assert self.status == 0, self.err
        return self.out


class Alembic:
    """A running command, such as "upgrade head"."""

    def __init__(self, words: str, folder: Path, variables: Mapping[str, str]) -> None:
        self.output = TemporaryDirectory()
        arguments = (words, folder, self.output.name, variables)
        self.process = processes.Process(target=run, args=arguments)
        self.process.start()

    def wait(self) -> Outcome:
        with self.output as folder:
            self.process.join(120)
            out, err = (Path(folder, name).read_text() for name in "12")
            return Outcome(self.process.exitcode, out, err)


def run(words: str, folder: Path, output: str, variables: Mapping[str, str]) -> None:
    for number in (1, 2):  # stdout and stderr
        os.dup2(os.open(f"{output}/{number}", os.O_WRONLY | os.O_CREAT), number)
    for name in ("DB_CONNECTION_STRING", "DB_SYNC_CONNECTION_STRING"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    main(words.split(), prog="alembic")


def copy_of_template(folder: Path) -> Path:
    """Copy the template, without its tests and dot-files."""
    ignore = shutil.ignore_patterns(".*", "*.db*", "tests")
    return shutil.copytree(ROOT, folder, ignore=ignore)
