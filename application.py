"""The demo: one user is created, read, updated and deleted."""

from datetime import date
from decimal import Decimal
from uuid import uuid4

from sqlalchemy.orm import selectinload

from database.models import Salary, UserDb
from repositories.user_repository_async import UserRepositoryAsync


async def run(users: UserRepositoryAsync) -> None:
    email = f"Ada.{uuid4()}@example.com"  # two demos may run at once
    salary = Salary(amount=Decimal("4200.00"), paid_on=date(2026, 1, 31))
    user = UserDb(name="Ada Lovelace", email=email, salaries=[salary])
    await users.create(user)
    print(f"Created  user {user.id}: {user.name} <{user.email}>")

    ada = await users.get_by_email(user.email, selectinload(UserDb.salaries))
    assert ada
    print(f"Read     user {ada.id} by e-mail: salary {ada.salaries[0].amount}")

    ada.name = "Ada King"
    await users.update(ada)
    print(f"Updated  user {ada.id}: now {ada.name}, version {ada.version_id}")

    print(f"Deleted  user {ada.id}: {await users.delete(ada.id)}")
