"""Alembic as a command, on every database, with the template's models and others."""

from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, NullPool, create_engine, make_url
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement

from database.context import DbContext
from tests.commands import ROOT, Alembic, copy_of_template
from tests.conftest import DRIVERS, MYSQL, SQLITE, NewUrl
from tests.models import a_family

only_sqlite = pytest.mark.parametrize("project", SQLITE, indirect=True)
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
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
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
    name: Mapped[str] = mapped_column(sa.String(20), unique=True)
    parent: Mapped[str | None] = mapped_column(sa.ForeignKey("notes.name"))
    title: Mapped[str] = mapped_column(sa.String(30))
    document = mapped_column(sa.JSON().with_variant(JSONB(), "postgresql"))
    words = mapped_column(sa.JSON().with_variant(ARRAY(sa.String(9)), "postgresql"))
    color: Mapped[Color]
"""


class Project:
    """A copy of the template, and a database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = copy_of_template(folder)
        self.models = self.folder / "database/models.py"
        self.versions = self.folder / "database/migrations/versions"
        self.url, self.head = url, HEAD
        options: Any = {"poolclass": NullPool, "isolation_level": "AUTOCOMMIT"}
        self.engine = create_engine(url, **options)

    def alembic(self, *commands: str, status: int = 0) -> tuple[str, str]:
        """Return what the last command wrote to stdout and stderr."""
        output = "", ""
        for command in commands:
            output = Alembic(command, self.folder, self.url).wait(status)
        return output

    def upgrade_at_once(self, processes: int) -> None:
        arguments = ("upgrade head", self.folder, self.url)
        for command in [Alembic(*arguments) for _ in range(processes)]:
            command.wait()

    def replace_models(self, models: str) -> None:
        """Replace the template's models, and remove its revision."""
        self.models.write_text(models)
        for file in self.versions.glob("*.py"):
            file.unlink()

    def add_revision(self, *lines: str) -> None:
        """Write a revision that follows the last one."""
        name = f"{self.head}_next"
        revision = REVISION.format(name, self.head, "\n    ".join(lines))
        (self.versions / f"{name}.py").write_text(revision)
        self.head = name

    def execute(self, *statements: str) -> list[Any]:
        """Return the rows of the last statement."""
        rows: list[Any] = []
        options = {"no_parameters": True}  # % stays as it is
        with self.engine.connect() as connection:
            for sql in statements:
                result = connection.exec_driver_sql(sql, execution_options=options)
                rows = list(result) if result.returns_rows else []
        return rows

    def schema(self) -> str:
        """Return the statements that create the tables and their indexes."""
        metadata = MetaData()
        metadata.reflect(self.engine, only=lambda name, _: name != "alembic_version")
        tables = metadata.tables.values()
        indexes = [CreateIndex(index) for table in tables for index in table.indexes]
        statements: list[DDLElement] = [*map(CreateTable, tables), *indexes]
        return "\n".join(sorted(str(each.compile(self.engine)) for each in statements))


@pytest.fixture(params=DRIVERS)
def project(request: pytest.FixtureRequest, tmp_path: Path, new_url: NewUrl) -> Project:
    return Project(tmp_path / "project", new_url(request.param))


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
    project.replace_models(MODELS)
    project.alembic("revision --autogenerate -m one", "upgrade head")

    longer = MODELS.replace("String(30)", "String(200)")
    project.models.write_text(f"{longer}    second_color: Mapped[Color | None]\n")
    project.alembic("revision --autogenerate -m two", "upgrade head", "downgrade base")
    assert project.schema() == ""
    project.alembic("upgrade head", "check")
    assert "title VARCHAR(200) NOT NULL" in project.schema()
    assert "second_color VARCHAR(50)" in project.schema()
    [file] = project.versions.glob("*_two.py")
    assert '"SQLite copies tables" in database/README.md' in file.read_text()


@only_sqlite
def test_an_index_that_is_not_compared_is_named(project: Project) -> None:
    index = 'sa.Index("uq_notes_title", sa.func.lower(Note.title), unique=True)'
    project.replace_models(f"{MODELS}\n{index}\n")
    for command in ("revision --autogenerate -m one", "check"):
        _, err = project.alembic(command)
        assert "expression-based index 'uq_notes_title'" in err
        project.alembic("upgrade head")


def test_constraints_are_dropped_by_their_names(project: Project) -> None:
    project.add_revision(
        'with op.batch_alter_table("users") as batch_op:',
        '    batch_op.drop_constraint("uq_users_email", "unique")',
        'with op.batch_alter_table("salaries") as batch_op:',
        '    batch_op.drop_constraint("fk_salaries_user_id_users", "foreignkey")',
        '    batch_op.drop_index("ix_salaries_user_id")',
    )
    project.alembic("upgrade head")
    names = ("uq_users_email", "fk_salaries_user_id_users", "ix_salaries_user_id")
    assert not [name for name in names if name in project.schema()]


@only_sqlite
def test_a_batch_copy_keeps_rows_children_and_autoincrement(project: Project) -> None:
    tables = ("users", "tax_accounts", "salaries")
    kept = [f"SELECT * FROM {table}" for table in tables]
    kept.append("SELECT 1 FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'")
    project.alembic("upgrade head")
    with DbContext(project.url) as db, db.transaction() as session:
        session.add(a_family())
    before = [project.execute(query) for query in kept]
    assert all(before)

    project.add_revision(
        'options = {"sqlite_autoincrement": True}',
        'with op.batch_alter_table("users", table_kwargs=options) as batch_op:',
        '    batch_op.alter_column("name", type_=sa.String(120))',
    )
    project.alembic("upgrade head")
    assert "name VARCHAR(120) NOT NULL" in project.schema()
    assert [project.execute(query) for query in kept] == before


@pytest.mark.parametrize("project", DRIVERS[:2], indirect=True)
def test_a_revision_that_fails_leaves_nothing_behind(project: Project) -> None:
    """The revisions before it, which succeeded, are rolled back with it."""
    project.alembic("upgrade head")
    with DbContext(project.url) as db, db.transaction() as session:
        session.add(a_family())
    before = project.schema()
    project.add_revision('op.create_table("whole", sa.Column("id", sa.Integer()))')
    project.add_revision(
        'op.create_table("half", sa.Column("id", sa.Integer()))',
        """op.execute("UPDATE users SET name = 'half'")""",
        'with op.batch_alter_table("users") as batch_op:',
        '    batch_op.alter_column("name", type_=sa.String(120))',
        'op.execute("UPDATE nowhere SET name = 1")',
    )
    _, err = project.alembic("upgrade head", status=1)
    assert "UPDATE nowhere" in err
    assert project.schema() == before
    assert project.execute("SELECT name FROM users") == [("User 1",)]


@only_sqlite
def test_several_processes_migrate_a_new_database(project: Project) -> None:
    project.add_revision("time.sleep(0.5)", 'op.drop_column("users", "name")')
    project.upgrade_at_once(3)


def test_processes_wait_for_a_revision_that_commits(project: Project) -> None:
    """Waiting does not block the concurrent index. On SQLite the lock is lost."""
    project.add_revision(
        'op.add_column("users", sa.Column("nickname", sa.String(50)))',
        "with op.get_context().autocommit_block():",
        "    time.sleep(1)",
        '    op.create_index("ix", "users", ["name"], postgresql_concurrently=True)',
    )
    project.upgrade_at_once(1 if "sqlite" in project.url else 3)


@only_sqlite
def test_two_heads_are_reported_as_such(project: Project) -> None:
    project.alembic("revision --head base -m second")
    _, err = project.alembic("upgrade head", status=255)
    assert "Multiple head revisions are present" in err


def test_a_sql_script_runs_on_its_database(project: Project) -> None:
    """A driver that takes %s for a parameter wants % doubled. A script does not."""
    project.add_revision(
        'label = sa.Column("label", sa.String(20), server_default="50%")',
        'table = op.create_table("discounts", sa.Column("id", sa.Integer()), label)',
        """op.execute("INSERT INTO discounts VALUES (7, '100%')")""",
        'op.execute(sa.insert(table).values(label="75%"))',
    )
    script, _ = project.alembic("upgrade head --sql")
    labels = project.execute(
        *filter(str.strip, script.split(";\n")),
        "INSERT INTO discounts (id) VALUES (9)",
        "SELECT label FROM discounts ORDER BY label",
    )
    assert labels == [("100%",), ("50%",), ("75%",)]


@pytest.mark.parametrize("project", MYSQL, indirect=True)
def test_a_password_contains_a_percent_sign(project: Project) -> None:
    """alembic.ini would take it for an interpolation."""
    url = make_url(project.url).set(username="percent", password="p%@ss")
    grant = f"GRANT ALL ON {url.database}.* TO percent@localhost"
    project.execute(f"{grant} IDENTIFIED BY 'p%@ss'")
    project.url = url.render_as_string(hide_password=False)
    project.alembic("upgrade head")
