"""Commands as a person types them, each in a process of its own, and what they say."""

import atexit
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple, cast

from sqlalchemy import URL

ROOT = Path(__file__).parents[1]
PYTHON = (sys.executable, "-W", "error")
MAIN = (*PYTHON, str(ROOT / "main.py"))
ALEMBIC = (*PYTHON, "-m", "alembic")
SECRET = "s3cr3t"


class Command(NamedTuple):
    """A program with its arguments, with which environment variables, where."""

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

    def refused(self, reason: str = ".", url: str = ".") -> None:
        """Status 1 and two lines: what the driver said, and which URL, without the password."""
        assert (self.status, self.err.count("\n")) == (1, 2), self.err
        said, shown = self.err.splitlines()
        assert re.search(reason, said)
        assert re.search(f"Database URL: .*{url}", shown)
        assert SECRET not in self.out + self.err


def copy_of_template(folder: Path) -> Path:
    return shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "*.db*", "tests"))


def to(url: str | URL) -> dict[str, str]:
    return {"DB_CONNECTION_STRING": url if isinstance(url, str) else url.render_as_string(hide_password=False)}


def clean_environment() -> dict[str, str]:
    hidden = ("DB_CONNECTION_STRING", "DB_SYNC_CONNECTION_STRING")  # as on a person's machine
    return {name: value for name, value in os.environ.items() if name not in hidden}


def run(command: Command) -> Outcome:
    done = subprocess.run(
        command.words,
        cwd=command.folder,
        env=clean_environment() | command.variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@cache
def forking_process() -> subprocess.Popen[str]:
    words = [*PYTHON, "-m", "tests.commands"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, cwd=ROOT, env=clean_environment(), stdin=pipe, stdout=pipe, text=True)
    atexit.register(process.communicate)  # no more commands: it ends
    return process


def at_once(*commands: Command) -> list[Outcome]:
    """Run commands of Python at the same time, as forks of a process that has imported the libraries.

    That takes most of the time of a command.
    """
    process = forking_process()
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, str(number)) for number in range(len(commands))]
        jobs = list(zip(commands, outputs, strict=True))
        print(json.dumps(jobs, default=str), file=process.stdin, flush=True)
        statuses = json.loads(cast(IO[str], process.stdout).readline())
        said = [[output.with_suffix(suffix).read_text() for suffix in (".1", ".2")] for output in outputs]
    return [Outcome(status, *texts) for status, texts in zip(statuses, said, strict=True)]


def forked(command: Command) -> Outcome:
    return at_once(command)[0]


def fork(words: list[str], variables: dict[str, str], folder: str, output: str) -> int:
    """Return the id of a child process. The child itself runs the command and ends."""
    if child := os.fork():
        return child
    signal.alarm(60)
    for number in (1, 2):
        os.dup2(os.open(f"{output}.{number}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.update(variables)
    sys.argv = words[len(PYTHON) :]
    if sys.argv[0] == "-m":
        sys.argv.pop(0)
        sys.path[0] = folder
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    drivers = ("aiomysql", "aiosqlite", "asyncmy", "asyncpg", "psycopg", "pymysql")
    dialects = [f"sqlalchemy.dialects.{name}" for name in ("mysql", "postgresql", "sqlite")]
    for name in (*drivers, *dialects, "alembic.command", "alembic.config", "sqlalchemy.ext.asyncio"):
        import_module(name)
    for line in sys.stdin:
        children = [fork(words, variables, folder, output) for (words, variables, folder), output in json.loads(line)]
        print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
