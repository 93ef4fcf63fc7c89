"""The declarative base, column types and the Versioned mixin."""

import enum
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, mapped_column

# `id: Mapped[Id]` is a generated key, `price: Mapped[Money]` is an amount.
big_integer = sa.BigInteger().with_variant(sa.Integer, "sqlite")
Id = Annotated[int, mapped_column(big_integer, primary_key=True)]

sqlite_money = sa.Float(asdecimal=True, decimal_return_scale=2)
money = sa.Numeric(12, 2).with_variant(sqlite_money, "sqlite")
Money = Annotated[Decimal, mapped_column(money)]

varchar_enum = sa.Enum(enum.Enum, native_enum=False, length=50, validate_strings=True)

convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A timezone-aware datetime, in UTC on every database."""

    mysql_type = mysql.DATETIME(fsp=6)
    impl = sa.DateTime(timezone=True).with_variant(mysql_type, "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        if value and value.tzinfo is None:
            raise ValueError("datetime without a time zone: use datetime.now(UTC)")
        if value and dialect.name != "postgresql":
            return value.astimezone(UTC).replace(tzinfo=None)
        return value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> Any:
        if value and value.tzinfo:
            return value.astimezone(UTC)
        return value and value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    metadata = sa.MetaData(naming_convention=convention)
    type_annotation_map = {datetime: UtcDateTime, enum.Enum: varchar_enum}

    def __repr__(self) -> str:
        key = ", ".join(map(str, sa.inspect(self).identity or ["new"]))
        return f"{type(self).__name__}({key})"


class Versioned:
    """Optimistic locking: storing an outdated row raises StaleDataError."""

    version_id: Mapped[int] = mapped_column(server_default="1")


# Not in __table_args__ or __mapper_args__: a model's own would replace them.
@event.listens_for(Base, "instrument_class", propagate=True)
def set_defaults(mapper: Any, model: type) -> None:
    table = mapper.local_table
    key = getattr(table, "autoincrement_column", None)
    if key is not None and (key.type is big_integer or type(key.type) is sa.Integer):
        # Without AUTOINCREMENT, SQLite may give the id of a deleted row to a new one.
        table.dialect_kwargs["sqlite_autoincrement"] = True
    if mapper.eager_defaults == "auto":
        # Reading what the database computes would raise on a detached object.
        mapper.eager_defaults = True
    if issubclass(model, Versioned) and mapper.version_id_col is None:
        mapper.version_id_col = table.c.version_id


def by_key(mapper: Mapper[Any], id: Any) -> list[sa.ColumnElement[bool]]:
    """Return the conditions for the row with this primary key."""
    values = id if isinstance(id, tuple) else (id,)
    keys = map(mapper.get_property_by_column, mapper.primary_key)
    return [key.class_attribute == v for key, v in zip(keys, values, strict=True)]


def checked_states(row: Base) -> list[Any]:
    """Check that a row and its children can be stored. Return their states."""
    state = sa.inspect(row)
    if not state.has_identity:
        raise exc.InvalidRequestError(f"{row} is new: use create()")
    cascade = state.mapper.cascade_iterator("save-update", state)
    states = [state, *(child for *_, child, _ in cascade)]
    for state in states:
        if state.detached and (state.expired or "version_id" in state.unloaded):
            raise exc.InvalidRequestError(f"{state.object} lacks values: read it again")
    return states
