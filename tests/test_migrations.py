"""Alembic as a command, on every database, with the template's models and others."""

from collections.abc import Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, NullPool, create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement

from database.context import DbContext
from tests.commands import ROOT, copy_of_template, processes, run
from tests.conftest import DRIVERS, SQLITE, NewUrl
from tests.models import a_family

HEAD = str(ScriptDirectory(str(ROOT / "database/migrations")).get_current_head())
REVISION = """
import time

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{}", "{}", None, None


def upgrade() -> None:
    {}
"""

MODELS = """
import enum
import uuid

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from database.base import Base


class Color(enum.Enum):
    RED = "red"


class Code(sa.TypeDecorator[str]):
    impl = sa.String(20)
    cache_ok = True


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(Code, primary_key=True)
    color: Mapped[Color]
"""


class Project:
    """A copy of the template, and a database."""

    def __init__(self, folder: Path, url: str, pool: Pool) -> None:
        self.folder, self.pool = copy_of_template(folder), pool
        self.models = self.folder / "database/models.py"
        self.versions = self.folder / "database/migrations/versions"
        self.url, self.head = url, HEAD
        self.engine = create_engine(url, poolclass=NullPool)

    def alembic(self, *commands: str, at_once: int = 1) -> str:
        """Return what the last command prints. Raise what a command raises."""
        printed = ""
        for command in commands:
            arguments = [(command, self.folder, self.url)] * at_once
            printed = "".join(self.pool.starmap_async(run, arguments, 1).get(120))
        return printed

    def add_revision(self, *lines: str) -> None:
        """Write a revision that follows the last one."""
        name = f"{self.head}_next"
        revision = REVISION.format(name, self.head, "\n    ".join(lines))
        (self.versions / f"{name}.py").write_text(revision)
        self.head = name

    def execute(self, *statements: str) -> list[Any]:
        """Return the rows of the last statement."""
        *others, query = statements
        with self.engine.connect() as connection:
            connection.execution_options(no_parameters=True)  # % stays as it is
            for sql in others:
                connection.exec_driver_sql(sql).close()
            return list(connection.exec_driver_sql(query))

    def schema(self) -> str:
        """Return the statements that create the tables and their indexes."""
        metadata = MetaData()
        metadata.reflect(self.engine, only=lambda name, _: name != "alembic_version")
        tables = metadata.tables.values()
        indexes = [CreateIndex(index) for table in tables for index in table.indexes]
        statements: list[DDLElement] = [*map(CreateTable, tables), *indexes]
        return "\n".join(sorted(str(each.compile(self.engine)) for each in statements))


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with processes.Pool(3, maxtasksperchild=1) as pool:
        yield pool


@pytest.fixture(params=DRIVERS)
def project(request: Any, tmp_path: Path, new_url: NewUrl, pool: Pool) -> Project:
    return Project(tmp_path / "project", new_url(request.param), pool)


def test_the_schema_at_head_is_that_of_the_models(project: Project) -> None:
    project.alembic("upgrade head", "check")
    migrated = project.schema()
    project.alembic("downgrade base")
    assert project.schema() == ""
    with DbContext(project.url) as db:
        db.create_all()
    assert migrated == project.schema()


def test_types_enums_and_keys_of_ones_own_migrate(project: Project) -> None:
    """A revision imports its types. An enum can be created twice, and added."""
    for demo in project.versions.glob("*.py"):
        demo.unlink()
    project.models.write_text(MODELS)
    project.alembic("revision --autogenerate -m one", "upgrade head")
    project.models.write_text(f"{MODELS}    second_color: Mapped[Color | None]\n")
    project.alembic("revision --autogenerate -m two", "upgrade head", "downgrade base")
    assert project.schema() == ""
    project.alembic("upgrade head", "check")
    assert "second_color VARCHAR(50)" in project.schema()
    [file] = project.versions.glob("*_two.py")
    assert '"SQLite copies tables" in database/README.md' in file.read_text()


@pytest.mark.parametrize("project", SQLITE, indirect=True)
def test_a_batch_copy_keeps_children_and_autoincrement(project: Project) -> None:
    family = "SELECT name, amount FROM users JOIN salaries ON users.id = user_id"
    project.alembic("upgrade head")
    with DbContext(project.url) as db, db.transaction() as session:
        session.add(a_family())
    project.add_revision(
        'options = {"sqlite_autoincrement": True}',
        'with op.batch_alter_table("users", table_kwargs=options) as batch_op:',
        '    batch_op.alter_column("name", type_=sa.String(120))',
    )
    project.alembic("upgrade head")
    assert project.execute(family) == [("User 1", 1), ("User 1", 2)]
    [(users,)] = project.execute("SELECT sql FROM sqlite_master WHERE name = 'users'")
    assert "name VARCHAR(120) NOT NULL" in users
    assert "AUTOINCREMENT" in users


@pytest.mark.parametrize("project", DRIVERS[:2], indirect=True)
def test_a_revision_that_fails_leaves_nothing_behind(project: Project) -> None:
    """The revisions before it, which succeeded, are rolled back with it."""
    project.alembic("upgrade head")
    before = project.schema()
    project.add_revision('op.create_table("whole", sa.Column("id", sa.Integer()))')
    project.add_revision(
        'op.create_table("half", sa.Column("id", sa.Integer()))',
        'with op.batch_alter_table("users") as batch_op:',
        '    batch_op.alter_column("name", type_=sa.String(120))',
        'op.execute("UPDATE nowhere SET name = 1")',
    )
    with pytest.raises(DBAPIError, match="UPDATE nowhere"):
        project.alembic("upgrade head")
    assert project.schema() == before


def test_processes_that_migrate_at_once_wait_for_each_other(project: Project) -> None:
    """Waiting does not block the concurrent index. On SQLite a commit ends the lock."""
    project.add_revision("time.sleep(0.5)", 'op.drop_column("users", "name")')
    project.alembic("upgrade head", at_once=3)
    project.add_revision(
        "with op.get_context().autocommit_block():",
        "    time.sleep(1)",
        '    op.create_index("ix", "users", ["email"], postgresql_concurrently=True)',
    )
    project.alembic("upgrade head", at_once=1 if "sqlite" in project.url else 3)


def test_a_sql_script_runs_on_its_database(project: Project) -> None:
    """A driver that takes %s for a parameter wants % doubled. A script does not."""
    project.add_revision(
        'table = op.create_table("discounts", sa.Column("label", sa.String(20)))',
        """op.execute("INSERT INTO discounts VALUES ('100%')")""",
        'op.execute(sa.insert(table).values(label="75%"))',
    )
    script = filter(str.strip, project.alembic("upgrade head --sql").split(";\n"))
    labels = project.execute(*script, "SELECT label FROM discounts ORDER BY label")
    assert labels == [("100%",), ("75%",)]


@pytest.mark.parametrize("project", DRIVERS[1:2], indirect=True)
def test_a_password_contains_a_percent_sign(project: Project) -> None:
    """alembic.ini would take it for an interpolation. This server accepts any."""
    url = make_url(project.url).set(password="p%@ss")
    project.url = url.render_as_string(hide_password=False)
    project.alembic("upgrade head")
