"""The tables. A value that a column can't hold raises ValueError where it is set."""

import re
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Dialect, ForeignKey, Integer, MetaData, Numeric, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, validates

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
MAX_ID = 2**63 - 1
MAX_AMOUNT = Decimal("9999999999.99")

# SQLite hands out ids only in a column whose type is exactly INTEGER.
Id = BigInteger().with_variant(Integer, "sqlite")


class Money(TypeDecorator[Decimal]):
    """An exact amount with two decimal places. SQLite would take it through a float, so it stores cents there."""

    impl = Numeric(12, 2).with_variant(BigInteger(), "sqlite")
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "sqlite":
            return value
        cents = Decimal(value).scaleb(2)
        return float(cents) if cents % 1 else int(cents)  # parts of a cent come from comparisons only

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return Decimal(value).scaleb(-2) if value is not None and dialect.name == "sqlite" else value


class Base(DeclarativeBase):
    # Alembic can drop a constraint only by its name.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    # Without these, MySQL's letters depend on how the server was set up: é may equal e, and an emoji be refused.
    __table_args__ = {
        "mysql_charset": "utf8mb4",
        "mysql_collate": "utf8mb4_bin",
        "mariadb_charset": "utf8mb4",
        "mariadb_collate": "utf8mb4_bin",
    }


class UserDb(Base):
    """A person. The e-mail address is kept in lower case, so that it is unique in any case.

    UserDb(name="Ada", email="ada@example.com", tax_account=TaxAccount(number="DE-1"))
    """

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254), unique=True)
    version: Mapped[int] = mapped_column()

    # lazy="raise": what no option loaded says so, in sync and async code alike.
    # passive_deletes: the database's ON DELETE CASCADE deletes the children, without reading them first.
    tax_account: Mapped["TaxAccount | None"] = relationship(
        back_populates="user", cascade="all, delete-orphan", passive_deletes=True, lazy="raise"
    )
    salaries: Mapped[list["Salary"]] = relationship(
        back_populates="user", cascade="all, delete-orphan", passive_deletes=True, lazy="raise", order_by="Salary.id"
    )

    # Two people edit one row: the second to save gets StaleDataError instead of silently winning.
    __mapper_args__ = {"version_id_col": version}

    @validates("name")
    def _check_name(self, key: str, value: str) -> str:
        return check_text(key, value, 1, 100)

    @validates("email")
    def _check_email(self, key: str, value: str) -> str:
        value = check_text(key, fold_email(value) if isinstance(value, str) else value, 3, 254)
        if "@" not in value:
            raise ValueError("email has no @")
        return value

    @validates("version")
    def _check_version(self, key: str, value: int) -> int:
        raise ValueError(f"{key} counts the updates by itself")


class TaxAccount(Base):
    """The account that a user pays taxes through; a user has one at most."""

    __tablename__ = "tax_accounts"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    number: Mapped[str] = mapped_column(String(32), unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), unique=True)
    user: Mapped[UserDb] = relationship(back_populates="tax_account", lazy="raise")

    @validates("number")
    def _check_number(self, key: str, value: str) -> str:
        return check_text(key, value, 1, 32)


class Salary(Base):
    """One payment to a user."""

    __tablename__ = "salaries"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    amount: Mapped[Decimal] = mapped_column(Money)
    paid_on: Mapped[date] = mapped_column()
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    user: Mapped[UserDb] = relationship(back_populates="salaries", lazy="raise")

    @validates("amount")
    def _check_amount(self, key: str, value: Decimal | int) -> Decimal:
        amount = Decimal(value) if isinstance(value, Decimal | int) else Decimal("NaN")
        if not amount.is_finite() or not 0 <= amount <= MAX_AMOUNT or amount != round(amount, 2):
            raise ValueError(f"{key} must be a Decimal from 0 to {MAX_AMOUNT} with two places at most")
        return round(amount, 2)

    @validates("paid_on")
    def _check_paid_on(self, key: str, value: date) -> date:
        if not isinstance(value, date) or isinstance(value, datetime):
            raise ValueError(f"{key} must be a date without a time")
        return value


def fold_email(email: str) -> str:
    """Return the address as it is stored and looked up."""
    return email.strip().lower()


def check_text(key: str, value: str, shortest: int, longest: int) -> str:
    """Return the text without surrounding blanks; raise ValueError for what not every database can hold."""
    if not isinstance(value, str) or not shortest <= len(value := value.strip()) <= longest or UNSTORABLE.search(value):
        raise ValueError(
            f"{key} must be text of {shortest} to {longest} characters, without NUL or half a surrogate pair"
        )
    return value


def check_int(key: str, value: int, least: int | None = None) -> int:
    """Return the number, cut to what a column holds; raise TypeError if it is none, ValueError if it is too small."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key} must be a whole number")
    if least is not None and value < least:
        raise ValueError(f"{key} must be at least {least}")
    return max(-MAX_ID, min(value, MAX_ID))
