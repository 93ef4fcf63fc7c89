"""Models for the tests: keys, types and inheritance that the demo does not have."""

import enum
import uuid
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, MetaData, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from database.base import Base, Id, Versioned
from database.models import Salary, TaxAccount, UserDb


class Own(Base):
    __abstract__ = True
    metadata = MetaData()


class Color(enum.Enum):
    RED = "red"


class Note(Own):
    """A model without a version, with a UUID key."""

    __tablename__ = "notes"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    word: Mapped[str] = mapped_column(String(20))
    edits: Mapped[int] = mapped_column(server_default="0", onupdate=text("edits + 1"))
    color: Mapped[Color | None]
    seen_at: Mapped[datetime | None]


class Counter(Own, Versioned):
    """A row that many transactions change at once. The order of its bases is free."""

    __tablename__ = "counters"

    id: Mapped[Id]
    value: Mapped[int]


class Country(Versioned, Own):
    """A model with a string as its key, and a version of its own."""

    __tablename__ = "countries"

    code: Mapped[str] = mapped_column(String(2), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    version: Mapped[str | None] = mapped_column(String(20))


class Chat(Own):
    """A model that chooses its own key. SQLite generates keys for INTEGER only."""

    __tablename__ = "chats"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)


class Membership(Versioned, Own):
    """A model with a composite key."""

    __tablename__ = "memberships"

    team: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    person: Mapped[str] = mapped_column(String(20), primary_key=True)
    role: Mapped[str] = mapped_column(String(20))


class Animal(Versioned, Own):
    """The base of joined-table inheritance, with arguments of its own."""

    __tablename__ = "animals"
    __table_args__ = (UniqueConstraint("name"),)
    __mapper_args__: Any = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    id: Mapped[Id]
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(20))


class Dog(Animal):
    __tablename__ = "dogs"
    __mapper_args__: Any = {"polymorphic_identity": "dog"}

    id: Mapped[Id] = mapped_column(ForeignKey("animals.id", ondelete="CASCADE"))


def a_user(n: int = 1, **values: Any) -> UserDb:
    return UserDb(**{"name": f"User {n}", "email": f"user{n}@example.com"} | values)


def a_family(n: int = 1) -> UserDb:
    """Return a new user with a tax account and two salaries."""
    salaries = [Salary(amount=Decimal(n), paid_on=date(2026, n, 1)) for n in (1, 2)]
    return a_user(n, tax_account=TaxAccount(number=f"TAX-{n}"), salaries=salaries)
