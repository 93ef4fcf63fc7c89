"""The declarative base, column types and the Versioned mixin. Copy it unchanged."""

import enum
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    MetaData,
    Numeric,
    TypeDecorator,
    inspect,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

# A primary key that the database generates: `id: Mapped[Id]`. It has 64 bits.
# SQLite generates keys only for a column whose type is exactly INTEGER.
Id = Annotated[
    int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
]

# An amount of money: `price: Mapped[Money]`. SQLite has no decimal type and would
# compare and add up text. A float keeps twelve digits exactly and can be added up.
Money = Annotated[
    Decimal,
    mapped_column(
        Numeric(12, 2).with_variant(
            Float(asdecimal=True, decimal_return_scale=2), "sqlite"
        )
    ),
]


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware datetime that every database returns in UTC.

    SQLite and MySQL store no time zone. They would silently drop it.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime]:
        if dialect.name in ("mysql", "mariadb"):
            # DATETIME without a precision drops the microseconds.
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(
        self, value: datetime | None, dialect: Dialect
    ) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("datetime without a time zone: use datetime.now(UTC)")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(
        self, value: datetime | None, dialect: Dialect
    ) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value.astimezone(UTC)


class Base(DeclarativeBase):
    """The base class of all models. Each model declares its own primary key.

    A model with __table_args__ or __mapper_args__ of its own replaces those below.
    """

    # Every constraint gets a name, so that a migration can drop or alter it.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {
        datetime: UtcDateTime,
        # A VARCHAR, because a migration can hardly change PostgreSQL's own enum types.
        enum.Enum: Enum(enum.Enum, native_enum=False, length=50, validate_strings=True),
    }
    # SQLite gives the id of a deleted row to a new one unless AUTOINCREMENT is set.
    __table_args__: Any = {"sqlite_autoincrement": True}
    # Values that the database computes are loaded with INSERT and UPDATE. Otherwise
    # they would expire, and reading them on a detached object raises.
    __mapper_args__: Any = {"eager_defaults": True}

    def __repr__(self) -> str:
        key = ", ".join(str(value) for value in inspect(self).identity or ["new"])
        return f"{type(self).__name__}({key})"


class Versioned:
    """Optimistic locking: `class Company(Versioned, Base)`.

    SQLAlchemy counts the updates of each row in version_id. If two people change the
    same version of a row, the second one gets StaleDataError and overwrites nothing.
    """

    version_id: Mapped[int] = mapped_column(server_default="1")

    def __init_subclass__(cls, **options: Any) -> None:
        # A class attribute here would be lost in a model with its own __mapper_args__.
        # A subclass of a mapped class inherits the setting and must not repeat it.
        if not any(inspect(base, raiseerr=False) for base in cls.__mro__[1:]):
            own: dict[str, Any] = getattr(cls, "__mapper_args__", {})
            options_ = {"version_id_col": Versioned.version_id, **own}
            cls.__mapper_args__ = options_
        super().__init_subclass__(**options)
