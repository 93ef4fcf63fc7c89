"""Alembic as a command, on every database, with the template's models and others."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, NullPool, create_engine, make_url, text
from sqlalchemy.schema import CreateIndex, CreateTable

from database.context import DbContext
from database.models import Salary, TaxAccount, UserDb
from tests.commands import ROOT, Alembic, copy_of_template
from tests.conftest import DRIVERS
from tests.servers import Server

HEAD = ScriptDirectory(str(ROOT / "database/migrations")).get_current_head()
SLUG = "users_tax_accounts_salaries"
every_database = pytest.mark.parametrize("driver", DRIVERS)
only_sqlite = pytest.mark.parametrize("driver", ["sqlite"])
only_postgres = pytest.mark.parametrize("driver", ["postgresql+psycopg"])
both_servers = pytest.mark.parametrize("driver", DRIVERS[1:])
not_mariadb = pytest.mark.parametrize("driver", DRIVERS[:2])

REVISION = """
import time

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{0}", "{1}", None, None


def upgrade() -> None:
    {2}


def downgrade() -> None:
    pass
"""


class Project:
    """A copy of the template, and a database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = copy_of_template(folder)
        self.versions = self.folder / "database/migrations/versions"
        self.url = url

    def start(self, command: str, **variables: str) -> Alembic:
        variables = {"DB_CONNECTION_STRING": self.url} | variables
        return Alembic(command, self.folder, variables)

    def alembic(self, *commands: str) -> str:
        """Run alembic commands that succeed. Return what the last one printed."""
        for command in commands:
            printed = self.start(command).wait().succeeded()
        return printed

    def upgrade_at_once(self, processes: int) -> None:
        running = [self.start("upgrade head") for _ in range(processes)]
        for outcome in [command.wait() for command in running]:
            outcome.succeeded()

    def replace_models(self, models: str) -> None:
        """Replace the template's models, and remove its revision."""
        (self.folder / "database/models.py").write_text(models)
        for file in self.versions.glob(f"*_{SLUG}.py"):
            file.unlink()

    def add_revision(
        self, *lines: str, name: str = "second", after: str | None = HEAD
    ) -> None:
        body = "\n    ".join(lines)
        (self.versions / f"{name}.py").write_text(REVISION.format(name, after, body))

    def engine(self) -> Engine:
        return create_engine(self.url, poolclass=NullPool)

    def execute(self, sql: str) -> None:
        with self.engine().begin() as connection:
            connection.execute(text(sql))

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self.engine().connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql))]

    def schema(self) -> dict[str, str]:
        """Return the statements that create each table and its indexes."""
        metadata = MetaData()
        engine = self.engine()
        metadata.reflect(engine)
        schema = {}
        for name, table in metadata.tables.items():
            lines = {str(CreateIndex(each).compile(engine)) for each in table.indexes}
            lines.add(str(CreateTable(table).compile(engine)))
            schema[name] = "\n".join(sorted(lines))
        schema.pop("alembic_version", None)
        return schema


@pytest.fixture
def project(tmp_path: Path, new_url: Callable[[str], str], driver: str) -> Project:
    return Project(tmp_path / "project", new_url(driver))


def add_user(url: str, email: str) -> int:
    """Store a user with children. Return the user's id."""
    user = UserDb(name="Ada", email=email, tax_account=TaxAccount(number=email))
    user.salaries = [Salary(amount=Decimal("4200.10"), paid_on=date(2026, 1, 28))]
    with DbContext(url) as db, db.transaction() as session:
        session.add(user)
    return user.id


@every_database
def test_the_schema_at_head_is_that_of_the_models(
    project: Project, new_url: Callable[[str], str], driver: str
) -> None:
    steps = ("upgrade head", "downgrade base", "upgrade head", "check")
    assert "No new upgrade operations" in project.alembic(*steps)
    migrated = project.schema()
    project.url = new_url(driver)
    with DbContext(project.url) as db:
        db.create_all()
    assert migrated == project.schema()


TYPES = """
from sqlalchemy import JSON, Column, ForeignKey, String, Table, TypeDecorator
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapped, mapped_column, relationship

from database.base import Base


class Code(TypeDecorator[str]):
    impl = String(20)
    cache_ok = True


notes_tags = Table(
    "notes_tags",
    Base.metadata,
    Column("note_code", ForeignKey("notes.code"), primary_key=True),
    Column("tag_name", ForeignKey("tags.name"), primary_key=True),
)


class Tag(Base):
    __tablename__ = "tags"
    name: Mapped[str] = mapped_column(String(20), primary_key=True)


class Note(Base):
    __tablename__ = "notes"
    code: Mapped[str] = mapped_column(Code, primary_key=True)
    document: Mapped[dict[str, str]] = mapped_column(
        JSON().with_variant(postgresql.JSONB(), "postgresql")
    )
    words: Mapped[list[str]] = mapped_column(
        JSON().with_variant(postgresql.ARRAY(String(9)), "postgresql")
    )
    tags: Mapped[list[Tag]] = relationship(secondary=notes_tags)
"""


@every_database
def test_a_revision_imports_the_types_of_its_columns(project: Project) -> None:
    """Among them are a foreign key to a string, a type of one's own, and variants."""
    project.replace_models(TYPES)
    steps = ("upgrade head", "check", "downgrade base")
    project.alembic("revision --autogenerate -m first", *steps)
    assert project.schema() == {}


ENUM = """
import enum
import uuid

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from database.base import Base


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Car(Base):
    __tablename__ = "cars"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str] = mapped_column(String(20))
    color: Mapped[Color]
"""


@every_database
def test_enums_and_uuid_keys_migrate(project: Project) -> None:
    project.replace_models(ENUM)
    revision = "revision --autogenerate -m"
    project.alembic(f"{revision} first", "upgrade head")

    longer = ENUM.replace("String(20)", "String(200)")
    project.replace_models(f"{longer}    second_color: Mapped[Color | None]\n")
    steps = ("upgrade head", "downgrade base", "upgrade head", "check")
    project.alembic(f"{revision} second", *steps)
    schema = project.schema()["cars"]
    assert "name VARCHAR(200) NOT NULL" in schema
    assert "second_color VARCHAR(50)" in schema
    [file] = project.versions.glob("*_second.py")
    assert '"SQLite copies tables" in database/README.md' in file.read_text()


@every_database
def test_constraints_are_dropped_by_their_names(project: Project) -> None:
    project.add_revision(
        'with op.batch_alter_table("users") as batch_op:',
        '    batch_op.drop_constraint("uq_users_email", type_="unique")',
        'with op.batch_alter_table("salaries") as batch_op:',
        "    batch_op.drop_constraint(",
        '        "fk_salaries_user_id_users", type_="foreignkey"',
        "    )",
        '    batch_op.drop_index("ix_salaries_user_id")',
    )
    project.alembic("upgrade head")
    schema = project.schema()
    names = ("uq_users_email", "fk_salaries_user_id_users", "ix_salaries_user_id")
    assert not [name for name in names if name in schema["users"] + schema["salaries"]]


def check_that_ids_are_new(project: Project) -> None:
    last = add_user(project.url, "bob@example.com")
    for table in ("tax_accounts", "users"):
        project.execute(f"DELETE FROM {table} WHERE id = {last}")
    assert add_user(project.url, "eve@example.com") == last + 1


@only_sqlite
def test_the_id_of_a_deleted_row_is_not_given_out_again(project: Project) -> None:
    project.alembic("upgrade head")
    check_that_ids_are_new(project)


@only_sqlite
def test_a_batch_copy_keeps_the_rows_and_their_children(project: Project) -> None:
    """AUTOINCREMENT stays as well if the revision asks for it."""
    project.alembic("upgrade head")
    project.add_revision(
        'options = {"sqlite_autoincrement": True}',
        'with op.batch_alter_table("users", table_kwargs=options) as batch_op:',
        '    batch_op.alter_column("name", type_=sa.String(120))',
    )
    add_user(project.url, "ada@example.com")
    tables = ("users", "tax_accounts", "salaries")
    before = [project.rows(f"SELECT * FROM {table}") for table in tables]
    project.alembic("upgrade head")
    assert [project.rows(f"SELECT * FROM {table}") for table in tables] == before
    assert "name VARCHAR(120) NOT NULL" in project.schema()["users"]
    check_that_ids_are_new(project)


@not_mariadb
def test_a_revision_that_fails_leaves_nothing_behind(project: Project) -> None:
    """The revisions before it, which succeeded, are rolled back with it."""
    project.alembic("upgrade head")
    add_user(project.url, "ada@example.com")
    before = project.schema()
    table = 'op.create_table("{}", sa.Column("id", sa.Integer(), primary_key=True))'
    project.add_revision(table.format("whole"))
    project.add_revision(
        table.format("half"),
        """op.execute("UPDATE users SET name = 'half'")""",
        'with op.batch_alter_table("users") as batch_op:',
        '    batch_op.alter_column("name", type_=sa.String(120))',
        'op.execute("UPDATE nowhere SET name = 1")',
        name="third",
        after="second",
    )
    failed = project.start("upgrade head").wait()
    assert failed.status != 0
    assert "UPDATE nowhere" in failed.err
    assert project.schema() == before
    assert project.rows("SELECT name FROM users") == [("Ada",)]


@every_database
def test_several_processes_migrate_a_new_database(project: Project) -> None:
    [first] = project.versions.glob("*.py")
    slowly = 'upgrade() -> None:\n    __import__("time").sleep(0.3)\n'
    first.write_text(first.read_text().replace("upgrade() -> None:\n", slowly))
    project.add_revision(
        "time.sleep(0.3)",
        'op.add_column("users", sa.Column("nickname", sa.String(50)))',
    )
    project.upgrade_at_once(3)


@every_database
def test_processes_wait_for_a_revision_with_an_autocommit_block(
    project: Project, driver: str
) -> None:
    """On SQLite the lock ends with a commit, so only one process runs it there."""
    project.add_revision(
        'op.add_column("users", sa.Column("nickname", sa.String(50)))',
        "with op.get_context().autocommit_block():",
        "    time.sleep(1)",
        """    op.execute("UPDATE users SET nickname = name")""",
        'op.add_column("users", sa.Column("motto", sa.String(50)))',
    )
    project.upgrade_at_once(1 if driver == "sqlite" else 2)
    assert "nickname" in project.schema()["users"]
    assert "motto" in project.schema()["users"]


@only_postgres
def test_waiting_processes_do_not_block_a_concurrent_index(project: Project) -> None:
    project.add_revision(
        "time.sleep(1)",
        "with op.get_context().autocommit_block():",
        "    op.create_index(",
        '        "ix_users_name", "users", ["name"], postgresql_concurrently=True',
        "    )",
    )
    project.upgrade_at_once(3)
    assert "ix_users_name" in project.schema()["users"]


@only_sqlite
def test_two_heads_are_reported_as_such(project: Project) -> None:
    project.add_revision("pass", name="one")
    project.add_revision("pass", name="two")
    failed = project.start("upgrade head").wait()
    assert failed.status != 0
    assert "Multiple head revisions are present" in failed.err
    assert "Traceback" not in failed.err


EXPRESSION_INDEX = """
from sqlalchemy import Index, String, func
from sqlalchemy.orm import Mapped, mapped_column

from database.base import Base, Id


class Person(Base):
    __tablename__ = "people"
    id: Mapped[Id]
    name: Mapped[str] = mapped_column(String(20))


Index("uq_people_lower_name", func.lower(Person.name), unique=True)
"""


@not_mariadb
def test_an_index_that_is_not_compared_is_named(project: Project, driver: str) -> None:
    """Autogenerate leaves an index of an expression out on SQLite only."""
    project.replace_models(EXPRESSION_INDEX)
    for command in ("revision --autogenerate -m first", "upgrade head", "check"):
        outcome = project.start(command).wait()
        outcome.succeeded()
        warned = "expression-based index 'uq_people_lower_name'" in outcome.err
        assert warned == (driver == "sqlite" and command != "upgrade head")
    if driver != "sqlite":
        assert "uq_people_lower_name" in project.schema()["people"]


@every_database
def test_a_sql_script_runs_on_its_database(project: Project) -> None:
    """A driver that takes %s for a parameter wants % doubled. A script does not."""
    project.add_revision(
        "discounts = op.create_table(",
        '    "discounts",',
        '    sa.Column("id", sa.Integer(), primary_key=True),',
        '    sa.Column("label", sa.String(20), server_default="50%"),',
        ")",
        """op.execute("INSERT INTO discounts VALUES (7, '100%')")""",
        'op.execute(sa.insert(discounts).values(label="75%"))',
    )
    script = project.alembic("upgrade head --sql")
    engine = create_engine(
        project.url,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        execution_options={"no_parameters": True},
    )
    with engine.connect() as connection:
        for statement in script.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        connection.exec_driver_sql("INSERT INTO discounts (id) VALUES (9)")
    labels = project.rows("SELECT label FROM discounts ORDER BY label")
    assert labels == [("100%",), ("50%",), ("75%",)]


@both_servers
def test_a_password_contains_a_percent_sign(
    project: Project, mariadb: Server, driver: str
) -> None:
    """alembic.ini would take it for an interpolation."""
    url = make_url(project.url).set(password="p%@ss")
    if driver.startswith("mysql"):
        mariadb.execute(
            "CREATE OR REPLACE USER percent@localhost IDENTIFIED BY 'p%@ss'"
        )
        mariadb.execute(f"GRANT ALL ON {url.database}.* TO percent@localhost")
        url = url.set(username="percent")
    project.url = url.render_as_string(hide_password=False)
    project.alembic("upgrade head")


@only_sqlite
def test_the_synchronous_url_wins(project: Project) -> None:
    urls = {"DB_SYNC_CONNECTION_STRING": project.url}
    project.url = "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"
    project.start("upgrade head", **urls).wait().succeeded()
