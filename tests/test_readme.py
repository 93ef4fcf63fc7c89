"""Every command, snippet and step of the README, as it stands there."""

import re
import sqlite3
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from database.context import DbContext
from database.context_async import DbContextAsync
from tests.readme import ROOT, TEXT, Block, Reader, blocks, environment, found, read

SECTIONS = (
    "Run it, The map, Reading and writing, Transactions, Your own models, Migrations, PostgreSQL and MySQL, "
    "Copy into a project, Testing your own code, More than one machine, How fast"
)
MODELS = [
    block for block in blocks("Your own models") if "# application.py" not in block.code and block.language != "sh"
]
ROWS = [[cell.strip() for cell in row.split("|")] for row in read("Copy into a project").splitlines() if "| `" in row]
FILES = {goal: files.replace("`", "") for _, goal, files, *_ in ROWS}
PACKAGES = {goal: packages.strip("`").split() for _, goal, _, packages, _ in ROWS}
NewUrl = Callable[[str], str]


@pytest.fixture
def clone(tmp_path: Path) -> Reader:
    return Reader(tmp_path / "clone").clone()


def test_is_short_and_in_order() -> None:
    assert len(TEXT.split()) <= 1800
    assert re.findall(r"^## (.*)$", TEXT, re.MULTILINE) == SECTIONS.split(", ")


def test_names_what_is_there() -> None:
    named = set(re.findall(r"\w+\.py", blocks("The map")[0].code))
    there = {path.name for pattern in ("*.py", "database/*.py", "repositories/*.py") for path in ROOT.glob(pattern)}
    assert named == there - {"__init__.py"}
    links = re.findall(r"\]\((?!https:)(.*?)\)", TEXT)
    assert links
    assert all((ROOT / link).is_file() for link in links)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = re.findall(r"--group (\w+)(?:` \(or `(\w+))?", TEXT)
    assert {"dev", *filter(None, sum(groups, ()))} == set(project["dependency-groups"])
    assert project["project"]["name"] not in str(project["dependency-groups"]), "a clone changes its name"
    assert f"\n{blocks('Run it')[0].code.splitlines()[1]}\n" in (ROOT / ".ci/run").read_text()


def test_without_uv(clone: Reader, tmp_path: Path) -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    command = found("`pip install .`, then `python (.+?)`", "Run it")
    assert "Deleted" in clone.run(f"{environment(tmp_path / 'environment', needed)}/bin/python {command}")


def test_snippets_before_and_after_the_demo(clone: Reader) -> None:
    demo, printed = blocks("Run it")
    command = demo.code.splitlines()[0]
    for number in range(2):
        _, use_async, use_sync = [clone.do(block) for block in blocks("Reading and writing")]
        assert re.fullmatch(r"UserDb\(id=\d+\) 2\nTrue\n", use_async)
        assert re.fullmatch(number * r"UserDb\(id=4\) None\n" + r"UserDb\(id=(\d+)\) TaxAccount\(id=\1\)\n", use_sync)
        nested, repeated = [clone.do(block) for block in blocks("Transactions")]
        assert nested == "taken\nTrue\n"
        assert re.fullmatch(r"UserDb\(id=\d+\)\n", repeated)
        story = re.sub(r"\b(user|id) \d+", r"\1 1", clone.run(command))
        assert re.sub(r"(?<=ada\.|TAX-)[0-9a-f]{8}", "5f0c9a1e", story) == printed.code


def follow_the_clone(clone: Reader) -> str:
    """Start from a clone, and return what the program prints."""
    printed = ""
    for step in re.split(r"\n(?=\d\. )", read("Your own models")):
        if renamed := re.findall(r"In `(.+?)` and `(.+?)` write `(.+?)` for `(.+?)` and `(.+?)` for `(.+?)`", step):
            *files, new, old, new_class, old_class = renamed[0]
            for file in files:
                source = (clone.folder / file).read_text()
                (clone.folder / file).write_text(source.replace(old, new).replace(old_class, new_class))
        for block in [block for block in blocks("Your own models") if block.code in step]:
            printed = clone.do(block)
    (clone.folder / "README.md").write_text("My own")
    return printed


def test_start_from_a_clone_add_a_column_and_test(clone: Reader) -> None:
    assert follow_the_clone(clone).endswith("\n[Company(id=2)]\n")
    for path in [path for path in clone.folder.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".db")]:
        assert not re.search(r"user_?(db|repo)|tax_?account|salar", path.read_text(), re.IGNORECASE), path
    [first] = clone.folder.glob("database/migrations/versions/*.py")
    assert "'companies'" in first.read_text()

    with (clone.folder / "database/models.py").open("a") as models:
        models.write(f"    {found('add a line to its class, `(.+?)`', 'Migrations')}\n")
    for block in blocks("Migrations"):
        clone.do(block)
    with closing(sqlite3.connect(clone.folder / "example.db")) as connection:
        assert connection.execute("SELECT name, city, version FROM companies").fetchall() == [
            ("Acme", "", 2),
            ("Hooli", "", 2),
        ]

    check_tests(clone, "async")
    clone.run("uv run ruff check")


def check_tests(reader: Reader, stack: str) -> None:
    """Write the fixture and the test of one stack. The test runs twice, so the second finds what the first left."""
    _, *fixtures, test = blocks("Testing your own code")
    fixture = fixtures[stack == "sync"].code
    assert len(fixture.partition("@")[2].splitlines()) <= 6
    code = test.code if stack == "async" else as_sync(test.code)
    [again] = re.findall(r"^(?:async )?def test_.*", code, re.MULTILINE | re.DOTALL)
    reader.do(Block("python", fixture))
    reader.do(Block("python", code + again.replace("def test_", "def test_again_")))
    before = files(reader.folder)
    assert "2 passed" in reader.run("uv run pytest -p no:cacheprovider")
    assert files(reader.folder) == before


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def as_sync(code: str) -> str:
    return re.sub(r"\b(async|await) |(_a|A)sync\b|\+aiosqlite|import asyncio\n|asyncio\.run", "", code)


@pytest.mark.parametrize("goal", ["async", "sync", "both"])
def test_copy_into_a_project(goal: str, tmp_path: Path) -> None:
    goals = ["async", "sync"] if goal == "both" else [goal]
    begin = found("A new project begins with `(.+?)`", "Copy into a project")
    copy, program, migrate = blocks("Copy into a project")
    packages = [package for row in (*goals, "migrations") for package in PACKAGES[row]] + ["pytest", "pytest-asyncio"]
    (own := tmp_path / "own").mkdir()
    reader = Reader(own, environment(tmp_path / "environment", packages), PYTEST_DEBUG_TEMPROOT=str(own))
    reader.run(begin)

    def carry(row: str) -> None:
        commands = copy.code.replace("../sqlalchemy-dual-stack-template", str(ROOT))
        reader.run(commands.replace("FILES", FILES[row]).replace("PACKAGES", " ".join(PACKAGES[row])))

    for row in goals:
        carry(row)
        other = "repository.py" if row == "async" else "repository_async.py"
        for block in [block for block in MODELS if other not in block.code]:
            reader.do(block)
        code = program.code if row == "async" else as_sync(program.code)
        assert reader.do(Block("python", code)) == "[]\n"

    carry("migrations")
    settings = reader.folder / "env.py"
    settings.write_text(settings.read_text().replace("example.db", "app.db"))
    reader.do(migrate)
    [first] = reader.folder.glob("database/migrations/versions/*_first.py")
    assert "'companies'" in first.read_text()
    assert len(re.findall("sqlite.*create_all", code, re.DOTALL)) == 1
    code = re.sub(r"\n.*create_all.*", "", code).replace('"sqlite+aiosqlite:///app.db"', "env.DB_CONNECTION_STRING")
    code = code.replace('"sqlite:///app.db"', "env.DB_SYNC_CONNECTION_STRING")
    assert reader.do(Block("python", f"import env\n{code}")) == "[]\n"
    if goal != "both":
        with (reader.folder / "pyproject.toml").open("a") as project:
            project.write(blocks("Testing your own code")[0].code)
        check_tests(reader, goal)


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg", "mysql+aiomysql"])
def test_another_database_is_one_variable(driver: str, clone: Reader, new_url: NewUrl) -> None:
    section = "PostgreSQL and MySQL"
    assert f"{driver}://" in read(section)
    [block] = blocks(section)
    commands, urls = re.subn(r'(?<=DB_CONNECTION_STRING=")[^"]+', new_url(driver), block.code)
    assert urls == 1
    assert f"Database {driver}://" in clone.run(commands)


async def test_options_behind_pgbouncer(new_url: NewUrl) -> None:
    for driver, context in (("psycopg", DbContext), ("asyncpg", DbContextAsync)):
        options = found(rf"{driver} `connect_args=(\{{.+?\}})`", "PostgreSQL and MySQL")
        arguments = {key: {"0": 0, "None": None}[value] for key, value in re.findall(r'"(\w+)": (\w+)', options)}
        db = context(new_url(f"postgresql+{driver}"), connect_args=arguments)
        if isinstance(db, DbContext):
            with db, db.read_session() as session:
                assert session.scalar(text("SELECT 1")) == 1
        else:
            async with db, db.read_session() as session_async:
                assert await session_async.scalar(text("SELECT 1")) == 1
