"""Every command and program of the README pages, run as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from tests.conftest import DRIVERS_ASYNC, NewUrl
from tests.readme import ROOT, Reader, as_sync, blocks, page
from tests.test_recipes import RECIPES

SERVERS = "PostgreSQL and MySQL"
COPYING, MIGRATING = page("README.md", "By copying").split("\n7. ")
BOOKSHOP = [each for each in blocks(COPYING) if each.file not in ("", "main.py")]
TESTING = [block for block in blocks(page("tests/README.md")) if block.file]


@pytest.fixture
def clone(tmp_path: Path) -> Reader:
    """A reader with a clone, which uses the packages of these tests."""
    ignore = shutil.ignore_patterns(".git", ".*venv*", ".*_cache", "uv.lock", "*.db*")
    folder = shutil.copytree(ROOT, tmp_path / "clone", ignore=ignore)
    return Reader(folder, UV_NO_SYNC="1", UV_PROJECT_ENVIRONMENT=sys.prefix)


@pytest.fixture
def own(tmp_path: Path) -> Reader:
    """A reader with an empty folder beside the template."""
    (tmp_path / "sqlalchemy-dual-stack-template").symlink_to(ROOT)
    return Reader(tmp_path / "own")


def test_the_map_names_every_file() -> None:
    text = "".join(block.code for block in blocks(page("README.md", "The map")))
    lists = [line.split("  ")[0] for line in text.splitlines()]
    named = set(", ".join(lists).split(", "))
    folders = tuple(name for name in named if name.endswith("/"))
    files = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
    others = {name for name in files if not name.startswith(folders)}
    assert named == others | {*folders}
    for path in (ROOT / "tests").glob("[a-z]*.py"):
        assert f"`{path.name}`" in page("tests/README.md", "These tests")
    assert len(page("README.md").split()) <= 1300
    for link in re.findall(r"\]\((?!https:)(.*?)\)", page("README.md")):
        assert (ROOT / link).is_file(), link


def test_the_first_screen_and_the_demo(clone: Reader) -> None:
    first, *programs = blocks(page("README.md").partition("\n## ")[0])
    demo, tests = first.code.splitlines()
    assert "Deleted  user 1" in clone.run(demo)
    assert tests == "uv run pytest"  # they run now
    clone.follow(*programs)


def test_a_server_is_one_line(clone: Reader, new_url: NewUrl) -> None:
    containers, settings, command = blocks(page("README.md", SERVERS))
    line = r"^(\w+=)(\S+)://\w+:secret@localhost:(\d+)/"
    lines = re.findall(line, settings.code, re.MULTILINE)
    variables, drivers, ports = zip(*lines, strict=True)
    assert [*ports] == re.findall(r"-p (\d+):\1 ", containers.code)
    assert {*drivers} < {*DRIVERS_ASYNC}, "test_main.py tries them"
    (clone.folder / ".env").write_text(variables[0] + new_url(drivers[0]))
    assert f"Database {drivers[0]}://" in clone.run(command.code)
    [alembic] = re.findall(r"`(uv run --env-file .*)`", page("README.md", "Migrations"))
    assert "No new upgrade operations" in clone.run(f"{alembic} check")
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_copying_step_by_step(own: Reader) -> None:
    own.follow(*blocks(COPYING))
    assert "1 passed" in own.run("uv run pytest")

    own.edit("main.py", r'"sqlite.*?"', "env.DB_CONNECTION_STRING")
    own.edit("main.py", r"^import application$", "import application\nimport env")
    own.edit("main.py", r".*create_all.*\n")
    [buy] = re.findall(r"`(await db.*)`", COPYING)
    own.edit("main.py", r"^( *)await app.*", rf"\g<0>\n\1ids = [1]\n\1{buy}")
    own.follow(*blocks(MIGRATING))
    assert own.run("uv run main.py") == "[('Dune', 3)]\n"
    assert own.run("uv run main.py") == "[('Dune', 2), ('Dune', 3)]\n"
    own.run("\n".join(re.findall(r"`(uv add .*?)`", page("README.md", SERVERS))))


def test_copying_for_sync_code(own: Reader) -> None:
    own.follow(*blocks(as_sync(COPYING)))
    _, fixtures, rollback = TESTING
    own.follow(fixtures, rollback._replace(code=as_sync(rollback.code)))
    assert "2 passed" in own.run("uv run pytest")


def test_the_table_counts_the_copied_lines(own: Reader) -> None:
    copying = {"async": COPYING, "sync": as_sync(COPYING), "migrations": MIGRATING}
    copying["both"] = copying["async"] + copying["sync"]
    table = dict(re.findall(r"^\|(\w+)\|.*\|(\d+)\|$", MIGRATING, re.MULTILINE))
    for row, text in copying.items():
        files = " ".join(re.findall(r"^cp (.*) \S+$", text, re.MULTILINE))
        code = own.run(f"ls {files} | sort -u | grep -v README.md | xargs cat")
        assert (row, table[row]) == (row, str(code.count("\n")))


@pytest.mark.skipif(not os.getenv("TEST_EVERY_DATABASE"), reason="slow: see .ci/run")
def test_a_clone_and_a_new_column(clone: Reader, new_url: NewUrl) -> None:
    steps = re.split(r"^\d+\. ", page("README.md", "From a clone"), flags=re.MULTILINE)
    names = [re.findall(r"(?<!`)`([^`\n]+)`", step) for step in steps]
    clone.follow(*blocks(steps[1]))
    assert clone.run("ls tests") == "README.md\nrecipes\n"
    clone.follow(*BOOKSHOP)

    root, main, book, user, book_class, user_class = names[3]
    clone.edit(root, user, book)
    clone.edit(root, user_class, book_class)
    clone.edit(main, user, book)
    clone.edit(names[4][0], r"^def create_(db|book_repository)\((?s:.*?)\n\n\n")
    clone.edit(names[4][0], r"^from .*(context|book_repository) import .*\n")
    project, *metadata = names[5]
    for name in metadata:
        clone.edit(project, rf'^{name} = ".*"', f'{name} = "bookshop"')
    group, *lines = names[6]
    clone.edit(project, rf"^{group} = \[\n(  .*\n)*\]\n")
    for name in [*lines, *names[7][1:]]:
        clone.edit(project, rf'^ *"?{name}\b.*\n')
    for name in names[8][1:]:
        clone.edit(project, rf'"{re.escape(name)}"(, )?')
    clone.edit(names[9][0], rf"^# .*\n{names[9][1]}\n")
    clone.run("uv lock\nuv run ruff check *.py database/models.py tests/*.py")
    printed = clone.run(blocks(steps[13])[0].code)
    assert "[('Dune', 3)]\n" in printed
    assert "1 passed" in printed

    section = page("database/README.md", "Migrations")
    column, commands = blocks(section)
    clone.edit("database/models.py", r"^    stock: .*\n", rf"\g<0>    {column.code}")
    clone.run(commands.code)
    [short, *_] = blocks(page("README.md", "Migrations"))
    assert commands.code == short.code.replace("what changed", "city")

    *others, merge = re.findall(r"`(uv run alembic .*?)`", section)
    second_head = 'uv run alembic revision --head base -m "a second head"'
    clone.run("\n".join([*others, second_head, merge]))

    fixtures, _, rollback = TESTING
    clone.follow(fixtures, rollback)
    _, on_server = blocks(page("tests/README.md"))[3].code.splitlines()
    server = re.sub(r"=\S+", f"={new_url('postgresql+asyncpg')}", on_server)
    assert "2 passed" in clone.run(server)

    [install] = re.findall(r"`(uv sync .*?)`", page("README.md", SERVERS))
    clone.variables["UV_PROJECT_ENVIRONMENT"] = "production"
    assert "Dune" in clone.run(f"{install}\nuv run main.py")


def test_repositories_page(clone: Reader, new_url: NewUrl) -> None:
    programs, entries = page("repositories/README.md").split("\n## How do I ...?\n")
    clone.follow(*blocks(programs))
    imports, *snippets = [block.code for block in blocks(entries)]
    url = f"url = {new_url('postgresql+psycopg')!r}\n"
    columns = "".join(each for each in snippets if ": Mapped[" in each)
    code = "".join(each for each in snippets if each not in columns)
    model = "from shop import Base\nclass Note(Base):\n    __tablename__ = 'notes'\n"
    program = imports + url + code + model + indent(columns, "    ")
    (clone.folder / "how.py").write_text(program)
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
    answers = ", then ".join(expected).split(", then ")
    assert clone.run("uv run how.py").splitlines() == answers


def test_the_recipes_start_as_the_page_says() -> None:
    commands = blocks(page("tests/README.md", "The recipes"))[0].code.splitlines()
    assert commands == [f"uv run {each.removesuffix(' --port')}" for each in RECIPES]
