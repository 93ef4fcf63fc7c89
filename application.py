"""The demo: one user is created, read, updated and deleted."""

from datetime import date
from decimal import Decimal
from uuid import uuid4

from sqlalchemy.orm import selectinload

from database.models import Salary, UserDb
from repositories.user_repository_async import UserRepositoryAsync


async def run(users: UserRepositoryAsync) -> None:
    email = f"Ada.{uuid4().hex}@example.com"  # two demos may run at once
    user = UserDb(name="Ada Lovelace", email=email)
    for amount in (Decimal("4200.00"), Decimal("150.50")):
        user.salaries.append(Salary(amount=amount, paid_on=date(2026, 1, 31)))
    await users.create(user)
    print(f"Created  user {user.id}: {user.name} <{user.email}>")

    ada = await users.get_by_email(user.email, selectinload(UserDb.salaries))
    assert ada
    amounts = " + ".join(str(salary.amount) for salary in ada.salaries)
    print(f"Read     user {ada.id} by e-mail: salaries {amounts}")

    ada.name = "Ada King"
    await users.update(ada)
    print(f"Updated  user {ada.id}: now {ada.name}, version {ada.version_id}")

    print(f"Deleted  user {ada.id}: {await users.delete(ada.id)}")
