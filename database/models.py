"""The tables: the file to replace by your own. A value that a column can't hold raises ValueError where it is set."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Float, ForeignKey, Numeric, String
from sqlalchemy.orm import Mapped, mapped_column, relationship, validates

from database.base import Base, Id, check_text

# SQLite has no decimals, and would divide whole amounts as integers: twelve digits of a float are exact there and back.
Money = Numeric(12, 2).with_variant(Float(asdecimal=True, decimal_return_scale=2), "sqlite")

# lazy="raise": what no option loaded says so, in both stacks. passive_deletes: ON DELETE CASCADE deletes the children.
OWNED: dict[str, Any] = {"cascade": "all, delete-orphan", "passive_deletes": True, "lazy": "raise"}


class TaxAccount(Base):
    """The account that a user pays taxes through. Its id is its user's: one a user, and a new one replaces the old."""

    __tablename__ = "tax_accounts"

    id: Mapped[int] = mapped_column(Id, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, sort_order=-2)
    number: Mapped[str] = mapped_column(String(32), unique=True)

    @validates("number")
    def check_number(self, key: str, value: str) -> str:
        return check_text(key, value, 1, 32)


class Salary(Base):
    """One payment to a user."""

    __tablename__ = "salaries"

    amount: Mapped[Decimal] = mapped_column(Money)
    paid_on: Mapped[date] = mapped_column()
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)

    @validates("amount")
    def check_amount(self, key: str, value: Decimal | int) -> Decimal:
        amount = Decimal(value) if isinstance(value, Decimal | int) else Decimal("NaN")
        if not amount.is_finite() or not 0 <= amount <= Decimal("9999999999.99") or amount != round(amount, 2):
            raise ValueError(f"{key} must be a Decimal from 0 to 9999999999.99 with two places at most")
        return round(amount, 2)

    @validates("paid_on")
    def check_paid_on(self, key: str, value: date) -> date:
        if not isinstance(value, date) or isinstance(value, datetime):
            raise ValueError(f"{key} must be a date without a time")
        return value


class UserDb(Base):
    """A person. The e-mail address is kept in lower case, so that it is unique in any case."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254), unique=True)

    tax_account: Mapped[TaxAccount | None] = relationship(**OWNED)
    salaries: Mapped[list[Salary]] = relationship(**OWNED, order_by=Salary.id)

    @validates("name")
    def check_name(self, key: str, value: str) -> str:
        return check_text(key, value, 1, 100)

    @validates("email")
    def check_email(self, key: str, value: str) -> str:
        email = check_text(key, value.strip().lower() if isinstance(value, str) else value, 3, 254)
        if "@" not in email:
            raise ValueError(f"{key} has no @")
        return email
