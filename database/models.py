"""The demo's tables. Replace them with your own."""

from datetime import UTC, date, datetime
from decimal import Decimal

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship, validates

from database.base import Base, Id, Money, Versioned


class TaxAccount(Versioned, Base):
    __tablename__ = "tax_accounts"

    id: Mapped[Id] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    number: Mapped[str] = mapped_column(String(32), unique=True)


class Salary(Versioned, Base):
    __tablename__ = "salaries"

    id: Mapped[Id]
    user_id: Mapped[int] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), index=True
    )
    amount: Mapped[Money]
    paid_on: Mapped[date]

    @validates("amount")
    def check_amount(self, _key: str, amount: Decimal) -> Decimal:
        if amount != round(amount, 2):
            raise ValueError(f"{amount} has more than two decimal places")
        return amount


class UserDb(Versioned, Base):
    __tablename__ = "users"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254), unique=True)
    created_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))

    tax_account: Mapped[TaxAccount | None] = relationship(
        cascade="all, delete-orphan", passive_deletes=True, lazy="raise"
    )
    salaries: Mapped[list[Salary]] = relationship(
        cascade="all, delete-orphan", passive_deletes=True, lazy="raise"
    )

    @validates("email")
    def normalize_email(self, _key: str, email: str) -> str:
        return email.strip().lower()
