"""What every table has: an id, a version, names for its constraints; and checks for values and rows."""

import re
from typing import Any

from sqlalchemy import BigInteger, Integer, MetaData, Table, event, inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# 64 bit everywhere. SQLite hands out ids only in a column whose type is exactly INTEGER, which has 64 bit there.
Id = BigInteger().with_variant(Integer, "sqlite")
MAX_ID = 2**63 - 1

# Else SQLite gives the id of a deleted row to the next one, and MySQL's set-up decides whether é equals e.
TABLE_OPTIONS: Any = {"sqlite_autoincrement": True, "mysql_collate": "utf8mb4_bin", "mariadb_collate": "utf8mb4_bin"}


class Base(DeclarativeBase):
    """The base of your models: class Company(Base): __tablename__ = "companies"; name: Mapped[str]"""

    id: Mapped[int] = mapped_column(Id, primary_key=True, sort_order=-2)
    version: Mapped[int] = mapped_column(sort_order=-1)

    # Two people edit one row: the second to save gets StaleDataError instead of silently winning. eager_defaults: else
    # a column with onupdate can't be read after an update. A model adds its own: {**Base.__mapper_args__, ...}
    __mapper_args__ = {"version_id_col": version, "eager_defaults": True}

    metadata = MetaData(  # Alembic can drop a constraint only by its name
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    @classmethod
    def __table_cls__(cls, *args: Any, **options: Any) -> Table:
        return Table(*args, **TABLE_OPTIONS | options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={(inspect(self).identity or [None])[0]})"  # without a query, also when spent


def check_new(*rows: Base) -> None:
    """Raise InvalidRequestError for a row that was stored before, also if that was rolled back."""
    for row in rows:
        if inspect(row).key or "version" in vars(row):
            raise InvalidRequestError(f"{row} was stored before, or rolled back: make a new object")


def check_read(row: Base) -> None:
    """Raise InvalidRequestError for a row, or child of one, that is new, spent by an error, or read without version."""
    if not inspect(row).key or "version" not in vars(row):
        raise InvalidRequestError(f"{row} is new, spent by an error, or read without its version: read it first")


event.listen(Base, "before_update", lambda _mapper, _connection, row: check_read(row), propagate=True)


def check_text(key: str, value: str, shortest: int, longest: int) -> str:
    """Return the text without surrounding blanks; raise ValueError for what not every database can hold."""
    text = value.strip() if isinstance(value, str) else ""
    if not shortest <= len(text) <= longest or re.search("[\x00\ud800-\udfff]", text):
        raise ValueError(f"{key} must be text of {shortest} to {longest} characters, none of them NUL or a surrogate")
    return text
