"""Alembic as a command, on every database."""

import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, make_url, text

from database.base import Base
from database.context import DbContext
from database.models import Salary, TaxAccount, UserDb
from repositories.user_repository import UserRepository
from tests.commands import ALEMBIC, MAIN, PYTHON, ROOT, Command, Outcome, at_once, copy_of_template, forked, to
from tests.conftest import SYNC
from tests.servers import Server

NewUrl = Callable[[str], str]
HEAD = ScriptDirectory(str(ROOT / "database/migrations")).get_current_head() or ""
every_database = pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+aiomysql"])

BONUS = """

class Bonus(Base):
    __tablename__ = "bonuses"
    __table_args__ = (UniqueConstraint("label"), CheckConstraint("amount > 0", name="some"))

    amount: Mapped[Decimal] = mapped_column(Money, index=True)
    label: Mapped[str] = mapped_column(String(20))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
"""


class Project:
    """A copy of the template, and a database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = copy_of_template(folder)
        self.models = self.folder / "database/models.py"
        self.versions = self.folder / "database/migrations/versions"
        self.url = url
        parsed = make_url(url)
        self.sync_url = parsed.set(drivername=SYNC[parsed.get_backend_name()])

    def alembic(self, *words: str) -> Outcome:
        return forked(Command((*ALEMBIC, *words), to(self.url), self.folder))

    def upgrade(self) -> None:
        outcome = self.alembic("upgrade", "head")
        outcome.succeeded()
        assert "Running upgrade" in outcome.err

    def add_revision(self, *upgrade: str) -> None:
        lines = [
            "import sqlalchemy as sa",
            "from alembic import op",
            f"revision, down_revision, branch_labels, depends_on = 'second', {HEAD!r}, None, None",
            "def upgrade() -> None:",
            *[f"    {line}" for line in upgrade],
        ]
        (self.versions / "second.py").write_text("\n".join(lines))

    def contents(self) -> dict[str, tuple[set[str], list[tuple[object, ...]]]]:
        """Return for each table of the models the names of its constraints and indexes, and its rows."""
        found = {}
        with DbContext(self.sync_url) as db, db.read_session() as session:
            inspector = inspect(session.connection())
            for table in set(inspector.get_table_names()) - {"alembic_version"}:
                names = {str(inspector.get_pk_constraint(table)["name"] or f"pk_{table}")}  # MySQL's have no names
                for kind in ("unique_constraints", "check_constraints", "foreign_keys", "indexes"):
                    names |= {item["name"] for item in getattr(inspector, f"get_{kind}")(table)}
                found[table] = names, [tuple(row) for row in session.execute(text(f"SELECT * FROM {table}"))]
        return found


@pytest.fixture
def project(tmp_path: Path, new_url: NewUrl, driver: str) -> Project:
    return Project(tmp_path / "project", new_url(driver))


def add_family(users: UserRepository, email: str) -> int:
    salaries = [Salary(amount=Decimal("4200.10"), paid_on=date(2026, month, 28)) for month in (1, 2)]
    return users.create(UserDb(name="Ada", email=email, tax_account=TaxAccount(number=email), salaries=salaries)).id


@every_database
def test_the_schema_at_head_is_what_the_models_say(project: Project) -> None:
    parts: dict[str, list[Any]] = {
        name: [*table.constraints, *table.indexes] for name, table in Base.metadata.tables.items()
    }
    assert project.alembic("current", "--check-heads").status != 0
    for _ in range(2):
        project.upgrade()
        project.alembic("current", "--check-heads").succeeded()
        assert "No new upgrade operations detected" in project.alembic("check").succeeded()
        assert project.contents() == {table: ({item.name for item in items}, []) for table, items in parts.items()}
        project.alembic("downgrade", "base").succeeded()
        assert project.contents() == {}


@every_database
def test_a_revision_is_generated_after_an_upgrade(project: Project) -> None:
    too_early = project.alembic("revision", "--autogenerate", "-m", "Add bonuses")
    assert too_early.status != 0
    assert "alembic upgrade head" in too_early.err
    project.upgrade()
    before = project.contents()
    models = project.models.read_text().replace("String(100)", "String(120)")
    imports = "from sqlalchemy import CheckConstraint, UniqueConstraint, "
    project.models.write_text(models.replace("from sqlalchemy import ", imports, 1) + BONUS)

    project.alembic("revision", "--autogenerate", "-m", "Add bonuses").succeeded()
    [added] = project.versions.glob("*_add_bonuses.py")
    assert re.match(r"\d{4}_\d\d_\d\d_\d{6}_", added.name), "files sort by date"
    project.upgrade()
    names = {"pk_bonuses", "uq_bonuses_label", "ck_bonuses_some", "fk_bonuses_user_id_users", "ix_bonuses_amount"}
    assert project.contents() == before | {"bonuses": (names, [])}
    assert "No new upgrade operations detected" in project.alembic("check").succeeded()
    project.alembic("downgrade", "-1").succeeded()
    assert project.contents() == before


@every_database
def test_constraints_can_be_dropped_by_their_names(project: Project) -> None:
    project.upgrade()
    project.add_revision(
        'with op.batch_alter_table("users") as table:',
        '    table.drop_constraint("uq_users_email", type_="unique")',
        'with op.batch_alter_table("salaries") as table:',
        '    table.drop_constraint("fk_salaries_user_id_users", type_="foreignkey")',
        '    table.drop_index("ix_salaries_user_id")',
    )
    project.upgrade()
    assert project.contents()["users"] == ({"pk_users"}, [])
    assert project.contents()["salaries"] == ({"pk_salaries"}, [])


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite"])
def test_sqlite_copies_a_table_without_loss(project: Project) -> None:
    """The children stay, and ids go on: none is given out twice."""
    project.upgrade()
    project.add_revision(
        'with op.batch_alter_table("users") as users:',
        '    users.alter_column("name", type_=sa.String(120))',
    )
    with DbContext(project.sync_url) as db:
        users = UserRepository(db)
        last = [add_family(users, f"{name}@example.com") for name in ("ada", "bob")][-1]
        users.delete(last)
        before = project.contents()
        project.upgrade()
        assert project.contents() == before
        assert add_family(users, "new@example.com") == last + 1


@pytest.mark.parametrize("driver", ["sqlite+aiosqlite", "postgresql+asyncpg"])
def test_a_revision_that_fails_half_way_leaves_nothing_behind(project: Project) -> None:
    project.upgrade()
    with DbContext(project.sync_url) as db:
        add_family(UserRepository(db), "ada@example.com")
    before = project.contents()
    project.add_revision(
        'op.create_table("half", sa.Column("id", sa.Integer(), primary_key=True))',
        """op.execute("UPDATE users SET name = 'half'")""",
        'with op.batch_alter_table("users") as users:',
        '    users.add_column(sa.Column("half", sa.Integer()))',
        """op.execute("UPDATE nowhere SET name = 'half'")""",
    )
    failed = project.alembic("upgrade", "head")
    assert (failed.status, "Traceback" in failed.err, "UPDATE nowhere" in failed.err) == (1, True, True)
    assert project.contents() == before


@every_database
def test_several_processes_bring_a_new_database_to_head(project: Project) -> None:
    """They all want to create the tables; each takes so long that they meet."""
    [initial] = project.versions.glob("*.py")
    start = "def upgrade() -> None:\n"
    initial.write_text(initial.read_text().replace(start, f"{start}    __import__('time').sleep(0.3)\n"))
    main = Command((*PYTHON, str(project.folder / "main.py")), to(project.url))
    for outcome in at_once(main, main, main):
        outcome.succeeded()


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "mysql+aiomysql"])
def test_a_script_has_percent_signs_as_they_are(tmp_path: Path, driver: str) -> None:
    """Drivers that take %s for a parameter want a % doubled; a script goes to no driver, and needs no server."""
    project = Project(tmp_path / "project", f"{driver}://u@127.0.0.1:1/db")
    project.add_revision(
        'op.create_table("discounts", sa.Column("label", sa.String(20), server_default="50%"))',
        """op.execute("UPDATE users SET name = '100%'")""",
        """op.execute(sa.update(sa.table("users", sa.column("name", sa.String))).values(name="75%"))""",
    )
    script = project.alembic("upgrade", "head", "--sql").succeeded()
    assert re.findall(r"'\d+%+'", script) == ["'50%'", "'100%'", "'75%'"]


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "mysql+aiomysql"])
def test_a_percent_sign_in_a_password(new_url: NewUrl, mariadb: Server, driver: str) -> None:
    """alembic.ini would take it for an interpolation."""
    url = make_url(new_url(driver)).set(password="p%@ss")
    if driver.startswith("mysql"):
        mariadb.execute("CREATE OR REPLACE USER percent@localhost IDENTIFIED BY 'p%@ss'")
        url = url.set(username="percent")  # to test_... databases everybody has all rights
    forked(Command(MAIN, to(url))).succeeded()


def test_the_sync_url_wins_where_it_is_set(new_url: NewUrl) -> None:
    variables = to("postgresql+asyncpg://u@127.0.0.1:1/db") | {"DB_SYNC_CONNECTION_STRING": new_url("sqlite")}
    forked(Command((*ALEMBIC, "upgrade", "head"), variables)).succeeded()
