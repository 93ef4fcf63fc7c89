"""Alembic as a command, on every database, before and after the demo."""

import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, inspect, make_url, text

import env
from database.models import Salary, TaxAccount, UserDb
from repositories.user_repository import UserRepository
from tests.servers import Server
from tests.test_demo import ALEMBIC, MAIN, ROOT, Command, assert_nobody_left, assert_told, at_once, reading, run, to

HEAD = ScriptDirectory(str(ROOT / "database/migrations")).get_current_head() or ""
NO_DIFFERENCE = "No new upgrade operations detected."

# The constraints and indexes of each table.
NAMES = {
    "users": {"pk_users", "uq_users_email"},
    "tax_accounts": {
        "pk_tax_accounts",
        "uq_tax_accounts_number",
        "uq_tax_accounts_user_id",
        "fk_tax_accounts_user_id_users",
    },
    "salaries": {"pk_salaries", "fk_salaries_user_id_users", "ix_salaries_user_id"},
}

BONUS = """

class Bonus(Base):
    __tablename__ = "bonuses"
    __table_args__ = (UniqueConstraint("label"), CheckConstraint("amount > 0", name="some"), Base.__table_args__)

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    amount: Mapped[Decimal] = mapped_column(Money)
    label: Mapped[str] = mapped_column(String(20))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
"""
BONUS_NAMES = {
    "pk_bonuses",
    "uq_bonuses_label",
    "ck_bonuses_some",
    "fk_bonuses_user_id_users",
    "ix_bonuses_user_id",
}


class Project:
    """A copy of the template, where revisions can be generated."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "*.db*", "tests"))
        self.folder = folder
        self.models = folder / "database" / "models.py"
        self.versions = folder / "database" / "migrations" / "versions"

    def alembic(self, url: str, *arguments: str) -> str:
        return run(Command((*ALEMBIC, *arguments), to(url), self.folder)).succeeded()

    def revisions(self) -> list[str]:
        return sorted(path.name for path in self.versions.glob("*.py"))

    def add_revision(self, name: str, down: str, *upgrade: str) -> None:
        lines = [
            "import sqlalchemy as sa",
            "from alembic import op",
            f"revision, down_revision, branch_labels, depends_on = {name!r}, {down!r}, None, None",
            "def upgrade() -> None:",
            *[f"    {line}" for line in upgrade],
        ]
        (self.versions / f"{name}.py").write_text("\n".join(lines))

    def slow_down(self) -> None:
        """Make the first revision, and the end of every migration, last so long that several commands meet there."""
        pause = "__import__('time').sleep(0.2)"
        environment = self.folder / "database" / "migrations" / "env.py"
        for file, line, added in (
            (self.versions / self.revisions()[0], r"^def upgrade\(\) -> None:$", rf"\g<0>\n    {pause}"),
            (environment, r"^( +)context\.run_migrations\(\)$", rf"\g<0>\n\1{pause}"),
        ):
            text, found = re.subn(line, added, file.read_text(), flags=re.MULTILINE)
            assert found
            file.write_text(text)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def alembic(url: str, *arguments: str) -> Command:
    return Command((*ALEMBIC, *arguments), to(url))


def execute(url: str, script: str) -> None:
    """Run a script of SQL statements, as a database administrator would."""
    engine = create_engine(reading(url).engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect().execution_options(no_parameters=True) as connection:
        for statement in script.rstrip().removesuffix(";").split(";\n"):
            connection.exec_driver_sql(statement)


def tables(url: str) -> set[str]:
    with reading(url) as db:
        return set(inspect(db.engine).get_table_names())


def names(url: str, table: str) -> set[str]:
    """Return the names of the table's constraints and indexes."""
    # MySQL calls every primary key PRIMARY, and reports no name
    with reading(url) as db:
        inspector = inspect(db.engine)
        found = [
            inspector.get_pk_constraint(table),
            *inspector.get_unique_constraints(table),
            *inspector.get_check_constraints(table),
            *inspector.get_foreign_keys(table),
            *inspector.get_indexes(table),
        ]
    return {str(constraint["name"] or f"pk_{table}") for constraint in found}


def pragma(url: str, name: str) -> object:
    with reading(url) as db, db.engine.connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def contents(url: str) -> dict[str, tuple[str, list[tuple[object, ...]]]]:
    """Return all that is in the database: for each table its columns and its rows, Alembic's table included."""
    with reading(url) as db, db.engine.connect() as connection:
        inspector = inspect(connection)
        return {
            table: (
                repr(inspector.get_columns(table)),
                [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))],
            )
            for table in sorted(inspector.get_table_names())
        }


def migrate_and_add_family(url: str) -> None:
    """Bring a database to head as main.py does, and store a user with one tax account and two salaries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(env, "DB_SYNC_CONNECTION_STRING", reading(url).engine.url.render_as_string(hide_password=False))
        command.upgrade(Config(ROOT / "alembic.ini"), "head")
    salaries = [Salary(amount=Decimal("4200.10"), paid_on=date(2026, month, 28)) for month in (1, 2)]
    user = UserDb(name="Ada", email="ada@example.com", tax_account=TaxAccount(number="TAX-1"), salaries=salaries)
    with reading(url) as db:
        UserRepository(db).create(user)


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+asyncpg", "mariadb+aiomysql"])
def test_every_command(new_url: Callable[[str], str], driver: str) -> None:
    url = new_url(driver)
    execute(url, run(alembic(url, "upgrade", "head", "--sql")).succeeded())
    assert tables(url) == {"alembic_version", *NAMES}
    for table, expected in NAMES.items():
        assert names(url, table) == expected

    check, current, history = at_once(*[alembic(url, word) for word in ("check", "current", "history")])
    assert NO_DIFFERENCE in check.succeeded()
    assert current.succeeded().startswith(f"{HEAD} (head)")
    assert f"-> {HEAD} (head)" in history.succeeded()

    run(alembic(url, "downgrade", "base")).succeeded()
    assert tables(url) == {"alembic_version"}


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+psycopg", "mysql+asyncmy"])
def test_a_generated_revision_runs_as_it_is(new_url: Callable[[str], str], project: Project, driver: str) -> None:
    """After the demo, which must not create tables behind Alembic's back."""
    url = new_url(driver)
    run(Command(MAIN, to(url))).succeeded()
    before = contents(url)
    initial = project.revisions()
    models = project.models.read_text()
    imports = "from sqlalchemy import CheckConstraint, UniqueConstraint\n"
    project.models.write_text(models.replace("from sqlalchemy import", f"{imports}from sqlalchemy import", 1) + BONUS)

    project.alembic(url, "revision", "--autogenerate", "-m", "Add bonuses")
    *others, added = project.revisions()
    assert others == initial, "files sort by date"
    assert re.fullmatch(r"\d{4}_\d\d_\d\d_\d{6}_add_bonuses\.py", added)
    assert "import database.models\n" in (project.versions / added).read_text()
    project.alembic(url, "upgrade", "head")
    assert names(url, "bonuses") == BONUS_NAMES
    assert NO_DIFFERENCE in project.alembic(url, "check")

    project.alembic(url, "downgrade", HEAD)
    assert contents(url) == before


def test_a_table_with_an_indexed_foreign_key_can_be_dropped(new_url: Callable[[str], str], project: Project) -> None:
    """MySQL keeps the index as long as the foreign key is there."""
    url = new_url("mysql+aiomysql")
    migrate_and_add_family(url)
    with project.models.open("a") as models:
        models.write("\n\nBase.metadata.remove(Base.metadata.tables[Salary.__tablename__])\n")
    project.alembic(url, "revision", "--autogenerate", "-m", "Drop salaries")
    project.alembic(url, "upgrade", "head")
    assert tables(url) == {"alembic_version", "users", "tax_accounts"}
    assert len(contents(url)["tax_accounts"][1]) == 1


def test_sqlite_keeps_the_children_while_it_copies_a_table(new_url: Callable[[str], str], project: Project) -> None:
    """With foreign keys on, dropping the old table would delete what refers to it."""
    url = new_url("sqlite+aiosqlite")
    migrate_and_add_family(url)
    before = contents(url)
    nickname = "    nickname: Mapped[str | None] = mapped_column(index=True)\n"
    wider = project.models.read_text().replace("String(100))\n", f"String(120))\n{nickname}", 1)
    project.models.write_text(wider)
    project.alembic(url, "revision", "--autogenerate", "-m", "Wider names")

    project.alembic(url, "upgrade", "head")
    upgraded = contents(url)
    columns, rows = upgraded["users"]
    assert "VARCHAR(length=120)" in columns
    assert [row[-1] for row in rows] == [None], "a nickname for everybody"
    assert names(url, "users") == {*NAMES["users"], "ix_users_nickname"}
    for table in ("tax_accounts", "salaries"):
        assert upgraded[table] == before[table]

    project.alembic(url, "downgrade", "-1")
    assert contents(url) == before
    assert names(url, "users") == NAMES["users"]


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+asyncpg"])
def test_an_upgrade_that_fails_half_way_leaves_nothing_behind(
    new_url: Callable[[str], str], project: Project, driver: str
) -> None:
    url = new_url(driver)
    migrate_and_add_family(url)
    before = contents(url)
    project.add_revision(
        "first",
        HEAD,
        'op.create_table("whole", sa.Column("id", sa.Integer(), primary_key=True))',
    )
    project.add_revision(
        "second",
        "first",
        'op.create_table("half", sa.Column("id", sa.Integer(), primary_key=True))',
        """op.execute("UPDATE users SET name = 'half'")""",
        'with op.batch_alter_table("users") as users:',
        '    users.add_column(sa.Column("half", sa.Integer()))',
        """op.execute("UPDATE nowhere SET name = 'half'")""",
    )
    failed = run(Command((*ALEMBIC, "upgrade", "head"), to(url), project.folder))
    assert failed.status != 0
    assert "UPDATE nowhere" in failed.err
    assert contents(url) == before


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+aiomysql"])
def test_several_demos_at_once_on_a_new_database(new_url: Callable[[str], str], project: Project, driver: str) -> None:
    """They all want to create the tables."""
    url = new_url(driver)
    project.slow_down()
    words = (sys.executable, "-W", "error", "main.py")
    for outcome in at_once(*[Command(words, to(url), project.folder)] * 3):
        assert_told(outcome)
    assert_nobody_left(url)


def test_turning_on_the_write_ahead_log_waits_for_another_process(new_url: Callable[[str], str]) -> None:
    """SQLite refuses at once, whatever the timeout: several processes that open a new file would meet that."""
    url = new_url("sqlite")
    other = sqlite3.connect(make_url(url).database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        journal_mode = pool.submit(pragma, url, "journal_mode")
        try:
            wait([journal_mode], 0.5)  # by now it would have been refused
        finally:
            other.close()
        assert journal_mode.result() == "wal"


def test_a_script_has_percent_signs_as_they_are(project: Project) -> None:
    """Drivers that take %s for a parameter want a % doubled; a script goes to no driver."""
    project.add_revision(
        "discounts",
        HEAD,
        'op.create_table("discounts", sa.Column("label", sa.String(20), server_default="50%"))',
        """op.execute("UPDATE users SET name = '100%'")""",
    )
    words = (*ALEMBIC, "upgrade", "head", "--sql")
    urls = [f"{driver}://u@127.0.0.1:1/db" for driver in ("postgresql+asyncpg", "mysql+aiomysql")]
    for outcome in at_once(*[Command(words, to(url), project.folder) for url in urls]):
        assert "DEFAULT '50%'" in outcome.succeeded()
        assert "'100%'" in outcome.out


def test_a_percent_sign_in_a_password(new_url: Callable[[str], str], mariadb: Server) -> None:
    """alembic.ini would take it for an interpolation."""
    postgres = make_url(new_url("postgresql+psycopg")).set(password="p%@ss")
    mysql = make_url(new_url("mysql+aiomysql")).set(username="percent", password="p%@ss")
    # percent@'%' alone would lose against the nameless user that MariaDB has for localhost
    accounts = "percent@'%' IDENTIFIED BY 'p%@ss', percent@localhost IDENTIFIED BY 'p%@ss'"
    mariadb.execute(f"CREATE OR REPLACE USER {accounts}")
    mariadb.execute(f"GRANT ALL ON {mysql.database}.* TO percent@'%', percent@localhost")
    urls = [url.render_as_string(hide_password=False) for url in (postgres, mysql)]
    assert all("p%25%40ss@" in url for url in urls)
    for outcome in at_once(*[Command(MAIN, to(url)) for url in urls]):
        assert_told(outcome)


def test_the_sync_url_wins_where_it_is_set(new_url: Callable[[str], str]) -> None:
    url = new_url("sqlite")
    variables = {"DB_CONNECTION_STRING": "postgresql+asyncpg://u@127.0.0.1:1/db", "DB_SYNC_CONNECTION_STRING": url}
    run(Command((*ALEMBIC, "upgrade", "head"), variables)).succeeded()
    assert tables(url) == {"alembic_version", *NAMES}
