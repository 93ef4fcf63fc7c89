"""Every command and program of the README pages, run as it stands there."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from textwrap import indent

import pytest

from tests.readme import ROOT, Reader, as_sync, blocks, page, paragraphs, words
from tests.test_recipes import RECIPES

README, DATABASE, REPOSITORIES, TESTS = (
    f"{folder}README.md" for folder in ("", "database/", "repositories/", "tests/")
)
LIMITS = {README: 1300, DATABASE: 1000, REPOSITORIES: 1000, TESTS: 500}
BY_COPYING = page(README, "### By copying")
BOOKSHOP = [each for each in blocks(BY_COPYING) if each.file not in ("", "main.py")]
TESTING = [block for block in blocks(page(TESTS)) if block.file]
NewUrl = Callable[[str], str]


@pytest.fixture
def clone(tmp_path: Path) -> Reader:
    return Reader.with_clone(tmp_path / "clone")


@pytest.mark.parametrize("name", LIMITS)
def test_a_page_is_short_and_easy_to_read(name: str) -> None:
    assert words(page(name)) <= LIMITS[name]
    sentences = []
    for paragraph in paragraphs(page(name)):
        assert words(paragraph) <= 60, paragraph
        sentences += re.split(r"(?<=[.?!])\s+", paragraph.strip())
    assert words(" ".join(sentences)) / len(sentences) <= 18
    for link in re.findall(r"\]\((?!https:)(.*?)\)", page(name)):
        assert (ROOT / name).parent.joinpath(link).is_file(), link


def test_the_map_names_every_file() -> None:
    named = set[str]()
    for block in blocks(page(README, "## The map")):
        for line in block.code.splitlines():
            named.update(line.split("  ")[0].split(", "))
    folders = tuple(name for name in named if name.endswith("/"))
    files = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
    others = {name for name in files if not name.startswith(folders)}
    assert named == others | {*folders}
    for path in (ROOT / "tests").glob("[a-z]*.py"):
        assert f"`{path.name}`" in page(TESTS, "## These tests")


def test_the_first_screen_and_the_demo(clone: Reader) -> None:
    first_screen = page(README).partition("\n## ")[0]
    demo, tests = blocks(first_screen)[0].code.splitlines()
    clone.follow(first_screen.replace(f"\n{tests}\n", "\n"))  # they run now
    assert "Deleted  user 2" in clone.run(demo)


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "mysql+aiomysql"])
def test_another_database_is_one_line(
    driver: str, clone: Reader, new_url: NewUrl
) -> None:
    containers, settings, command = blocks(page(README, "## PostgreSQL and MySQL"))
    line = rf"^(\w+=){re.escape(driver)}://\w+:secret@localhost:(\d+)/"
    [(variable, port)] = re.findall(line, settings.code, re.MULTILINE)
    assert f"-p {port}:{port} " in containers.code
    clone.write(".env", variable + new_url(driver))
    assert f"Database {driver}://" in clone.run(command.code)
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_copying_step_by_step(tmp_path: Path) -> None:
    steps, migrate = BY_COPYING.split("\n7. ")
    (tmp_path / "sqlalchemy-dual-stack-template").symlink_to(ROOT)
    reader = Reader(tmp_path / "own")
    reader.follow(steps)
    assert "1 passed" in reader.run("uv run pytest")

    # The bookshop's test fails if the purchase isn't one transaction.
    repository = "repositories/book_repository_async.py"
    one_transaction = (reader.folder / repository).read_text()
    reader.edit(repository, r"async with self.writing\(\) as", "for")
    reader.edit(repository, "for session:", "for session in [self.db]:")
    assert "1 failed" in reader.run("uv run pytest", fails=True)
    reader.write(repository, one_transaction)

    reader.edit("main.py", r'"sqlite.*?"', "env.DB_CONNECTION_STRING")
    reader.edit("main.py", r"^import application$", "import application\nimport env")
    reader.edit("main.py", r".*create_all.*\n")
    reader.follow(migrate)
    assert reader.run("uv run main.py") == "[('Dune', 3)]\n"


def test_copying_for_sync_code(tmp_path: Path) -> None:
    (tmp_path / "sqlalchemy-dual-stack-template").symlink_to(ROOT)
    reader = Reader(tmp_path / "own")
    reader.follow(as_sync(BY_COPYING.split("\n7. ")[0]))
    _, fixtures, rollback = TESTING
    reader.save(fixtures, rollback._replace(code=as_sync(rollback.code)))
    assert "2 passed" in reader.run("uv run pytest")


def copied(text: str) -> set[str]:
    """Return the files that the `cp` commands copy, without README.md."""
    found = re.findall(r"^cp \.\./[\w-]+/(.*?)\{(.*?)\}", text, re.MULTILINE)
    files = {folder + name for folder, names in found for name in names.split(",")}
    return {name for name in files if not name.endswith(".md")}


def test_the_table_counts_the_copied_lines() -> None:
    table = re.findall(r"^\|(\w+)\|.*\|(\d+)\|$", BY_COPYING, re.MULTILINE)
    start, migrate = BY_COPYING.split("\n2. ")[0], BY_COPYING.split("\n7. ")[1]
    files = {"async": copied(start), "sync": copied(as_sync(start))}
    files |= {"both": files["async"] | files["sync"], "migrations": copied(migrate)}
    for row, names in files.items():
        files_lines = [(ROOT / name).read_text().count("\n") for name in names]
        assert (row, str(sum(files_lines))) in table


def build_bookshop(clone: Reader) -> str:
    """Follow the steps for a clone, and return what the program prints."""
    steps = re.split(r"^\d+\. ", page(README, "### From a clone"), flags=re.MULTILINE)
    names = [re.findall(r"(?<!`)`([^`\n]+)`", step) for step in steps]
    project = "pyproject.toml"
    clone.follow(steps[1])
    assert clone.run("ls tests") == "README.md\nrecipes\n"
    clone.save(*BOOKSHOP)
    root, main, book, user, book_class, user_class = names[3]
    clone.edit(root, user, book)
    clone.edit(root, user_class, book_class)
    clone.edit(main, user, book)
    clone.edit(names[4][0], r"^def create_(db|book_repository)\((?s:.*?)\n\n\n")
    clone.edit(names[4][0], r"^from .*(context|orm|book_repository) import .*\n")
    *_, run, test = blocks(steps[5])[0].code.splitlines()
    clone.run(blocks(steps[5])[0].code.replace(test, ""))
    for name in names[6][1:]:
        clone.edit(project, rf'^{name} = ".*"', f'{name} = "bookshop"')
    clone.edit(project, rf"^(# .*\n)?{names[7][0]} = \[\n(  .*\n)*\]\n")
    for name in [*names[7][1:], *names[8][1:]]:
        clone.edit(project, rf'^ *"?{name}\b.*\n')
    for name in names[9][1:]:
        clone.edit(project, rf'"{re.escape(name)}"(, )?')
    clone.edit(names[10][0], rf"^# .*\n{names[10][1]}\n")
    assert "1 passed" in clone.run(test)
    return clone.run(
        f"uv lock\nuv run ruff check -q *.py database/models.py tests/*.py\n{run}"
    )


def test_a_bookshop_from_a_clone_and_a_new_column(
    clone: Reader, new_url: NewUrl
) -> None:
    printed = build_bookshop(clone)
    assert printed.endswith("[('Dune', 3), ('Dune', 3)]\n")
    section = page(DATABASE, "## Migrations")
    column, commands = blocks(section)
    clone.edit("database/models.py", r"^    stock: .*\n", rf"\g<0>    {column.code}")
    clone.run(commands.code)
    short = blocks(page(README, "## Migrations"))[0].code
    assert commands.code == short.replace("what changed", "city")
    for command in re.findall(r"`(uv run alembic .*?)`", section):
        if "merge" in command:
            clone.run('uv run alembic revision --head base -m "a second head"')
        clone.run(command)

    fixtures, _, rollback = TESTING
    clone.save(fixtures, rollback)
    _, on_server = blocks(page(TESTS))[3].code.splitlines()
    server = re.sub(r"=\S+", f"={new_url('postgresql+asyncpg')}", on_server)
    for _ in range(2):  # the tables are gone in between
        assert "2 passed" in clone.run(server)


def test_repositories_page(clone: Reader, new_url: NewUrl) -> None:
    programs, entries = page(REPOSITORIES).split("\n## How do I ...?\n")
    clone.follow(programs)
    imports, *snippets = [block.code for block in blocks(entries)]
    url = f"url = {new_url('postgresql+psycopg')!r}\n"
    columns = "".join(each for each in snippets if ": Mapped[" in each)
    code = "".join(each for each in snippets if each not in columns)
    model = "from shop import Base\nclass Note(Base):\n    __tablename__ = 'notes'\n"
    clone.write("how.py", imports + url + code + model + indent(columns, "    "))
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
    answers = ", then ".join(expected).split(", then ")
    said = clone.run("uv run how.py").splitlines()
    assert [line for line in said if "sqlalchemy.engine" not in line] == answers


def test_the_recipes_start_as_the_page_says() -> None:
    commands = blocks(page(TESTS, "## The recipes"))[0].code.splitlines()
    assert commands == [f"uv run {each.removesuffix(' --port')}" for each in RECIPES]
