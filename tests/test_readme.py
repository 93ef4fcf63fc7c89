"""Every command, snippet and table of the README, run as it stands there by somebody who just cloned the repository."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from database.context import DbContext
from database.models import Base
from tests.readme import BLOCKS, README, ROOT, block, need_uv, run, run_python, used
from tests.servers import free_port


def copy_project(folder: Path) -> Path:
    """What a clone would hold, with the changes that are not committed yet."""
    files = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in files.split():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the demo has run."""
    need_uv()
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
    commands = block("Run it", "sh", 1).replace("python -m venv", f"{sys.executable} -m venv")
    assert "Deleted  user 1: gone" in run(commands, folder)


def test_async_snippet(clone: Path) -> None:
    assert run_python(block("Async code", "python"), clone) == "True\n"


def test_async_snippet_without_async_and_await(clone: Path) -> None:
    code = block("Async code", "python").replace("import asyncio\n", "").replace("asyncio.run(main())", "main()")
    assert run_python(re.sub(r"\b(async|await) |_async\b", "", code), clone) == "True\n"


def test_sync_snippet(copy: Path) -> None:
    snippet = block("Sync code", "python")
    assert run_python(snippet, copy) == "Alan Turing []\nTrue\n"
    ada = "UserDb(name='Ada', email='a@b', salaries=[Salary(amount=7, paid_on=date(2026, 1, 1))])"
    create = f"    users.create({ada})\n    grace ="
    imports = "from datetime import date\n\nfrom database.models import Salary\n"
    printed = run_python(imports + snippet.replace("    grace =", create), copy)
    assert printed == "Ada [Decimal('7.00')]\nAlan Turing []\nTrue\n"


def test_run_snippet(copy: Path) -> None:
    rename = block("When one machine is not enough", "python")
    assert run_python(rename, copy) == "2\n"
    assert run_python(rename, copy) == "2\n"


def test_the_benchmark_starts(copy: Path) -> None:
    (copy / ".venv").unlink()  # it wants one of its own
    command = re.findall(r"`(uv run .*tests\.benchmarks)`", README)[0]
    assert "--rounds" in run(f"{command} --help", copy)


def test_migration_commands(copy: Path) -> None:
    (copy / "example.db").unlink()
    upgrade, check = re.findall(r"`(uv run alembic [^`]+)`", README)
    assert run(upgrade, copy) == ""
    assert run(check, copy) == "No new upgrade operations detected.\n"


def test_a_column_and_a_model_of_your_own(copy: Path) -> None:
    model, repository, use = (block("Migrations", "python", number) for number in range(3))
    column, default = re.findall(r"\*\*A new column\*\* goes into its class: `(.+?)`.* gets a `(.+?)`", README)[0]
    required = column.replace("nickname", "motto").replace(" | None", "").replace("))", f"), {default})")
    run_python(block("Sync code", "python").replace("users.delete(alan.id)", "'Alan stays'"), copy)
    models = copy / "database/models.py"
    columns = rf"\g<0>\n    {column}\n    {required}"
    source, found = re.subn(r"^    email: .*$", columns, models.read_text(), flags=re.MULTILINE)
    assert found == 1
    models.write_text(f"{source}\n\n{model}")
    (copy / "repositories/company_repository.py").write_text(repository)
    run(block("Migrations", "sh"), copy)
    assert run_python(use, copy) == "1\n"
    with DbContext(f"sqlite:///{copy}/example.db") as db, db.engine.connect() as connection:
        alan = connection.exec_driver_sql("SELECT name, nickname, motto FROM users").one()
        assert tuple(alan) == ("Alan Turing", None, "")
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
    ("number", "packages", "command"),
    [
        (0, "fastapi[standard]", "uv run fastapi run web.py --port {port}"),
        (1, "flask", "uv run flask --app web run --port {port}"),
    ],
)
def test_in_a_framework(serve: Callable[[str, str, str], str], number: int, packages: str, command: str) -> None:
    address = serve(packages, block("In FastAPI and Flask", "python", number), command)
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
        unused = [block for block in BLOCKS if block not in used]
        assert [block.section for block in unused] == ["Test your own code"], "which test_copying runs"
