"""Alembic commands, each in a process of its own."""

import os
import shutil
from multiprocessing import get_context
from pathlib import Path

from alembic.config import main

ROOT = Path(__file__).parents[1]
# Importing takes most of a command's time. The fork server does it only once.
processes = get_context("forkserver")
modules = ["tests.commands", "sqlalchemy.orm", "psycopg", "pymysql"]
modules += [f"sqlalchemy.dialects.{name}" for name in ("mysql", "postgresql", "sqlite")]
processes.set_forkserver_preload(modules)


class Alembic:
    """A running command, such as "upgrade head"."""

    def __init__(self, words: str, folder: Path, url: str) -> None:
        self.output = f"{folder}/{os.urandom(4).hex()}"
        arguments = (words, folder, self.output, url)
        self.process = processes.Process(target=run, args=arguments)
        self.process.start()

    def wait(self, status: int = 0) -> tuple[str, str]:
        """Return what went to stdout and stderr. Fail if the exit status differs."""
        self.process.join(120)
        out, err = (Path(f"{self.output}.{number}").read_text() for number in (1, 2))
        assert self.process.exitcode == status, err
        return out, err


def run(words: str, folder: Path, output: str, url: str) -> None:
    for number in (1, 2):  # stdout and stderr
        os.dup2(os.open(f"{output}.{number}", os.O_WRONLY | os.O_CREAT), number)
    os.environ["DB_SYNC_CONNECTION_STRING"] = url
    # Nobody listens here. The synchronous URL wins.
    os.environ["DB_CONNECTION_STRING"] = "postgresql+asyncpg://nobody@127.0.0.1:1/name"
    os.chdir(folder)
    main(words.split(), prog="alembic")


def copy_of_template(folder: Path) -> Path:
    """Copy the template, without its tests and dot-files."""
    ignore = shutil.ignore_patterns(".*", "*.db*", "tests")
    return shutil.copytree(ROOT, folder, ignore=ignore)
