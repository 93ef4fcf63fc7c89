"""The demo: one user's life, told through the repository alone."""

from datetime import date
from decimal import Decimal
from uuid import uuid4

from sqlalchemy.orm import selectinload

from database.models import Salary, TaxAccount, UserDb
from repositories.user_repository_async import UserRepositoryAsync


async def run(users: UserRepositoryAsync) -> None:
    """Create, read, update and delete a user, and print each step. Leaves nothing behind, so it can run any time."""
    tag = uuid4().hex[:8]  # two demos may run at once
    account = TaxAccount(number=f"TAX-{tag}")
    salaries = [
        Salary(amount=Decimal(amount), paid_on=date(2026, 1, 31))
        for amount in ("4200.00", "150.50")
    ]

    user = UserDb(
        name="Ada Lovelace",
        email=f"Ada.{tag}@example.com",
        tax_account=account,
        salaries=salaries,
    )
    ada = await users.create(user)
    print(f"Created  user {ada.id}: {ada.name} <{ada.email}>")

    found = await users.get_by_email(
        ada.email.upper(),
        selectinload(UserDb.tax_account),
        selectinload(UserDb.salaries),
    )
    assert found is not None
    assert found.tax_account is not None
    paid = " + ".join(str(salary.amount) for salary in found.salaries)
    print(
        f"Read     user {found.id} by e-mail: tax account {found.tax_account.number}, salaries {paid}"
    )

    found.name = "Ada King"
    await users.update(found)
    print(f"Updated  user {found.id}: now {found.name}, version {found.version_id}")

    page = await users.get_page(after_id=found.id - 1, limit=10)
    print(
        f"Listed   {len(page)} user(s) from id {found.id} on: {', '.join(user.name for user in page)}"
    )

    gone = await users.delete(found.id) and await users.get_by_id(found.id) is None
    print(
        f"Deleted  user {found.id}: {'gone' if gone else 'still there'}, tax account and salaries with it"
    )
