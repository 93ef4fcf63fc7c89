from datetime import date
from decimal import Decimal
import pytest
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.exc import StaleDataError
from database.context_async import DbContextAsync
from database.models import Salary, TaxAccount, UserDb
from repositories.user_repository_async import UserRepositoryAsync


async def test_smoke(db: DbContextAsync, users: UserRepositoryAsync) -> None:
    u = await users.create(
        UserDb(
            name="A",
            email="A@x",
            tax_account=TaxAccount(number="1"),
            salaries=[Salary(amount=Decimal("1.10"), paid_on=date(2026, 1, 1))],
        )
    )
    assert u.version_id == 1
    f = await users.get_by_id(
        u.id, selectinload(UserDb.salaries), selectinload(UserDb.tax_account)
    )
    f.salaries.pop()
    f.name = "F"
    f.tax_account = TaxAccount(number="2")
    await users.update(f)
    u.name = "stale"
    with pytest.raises(StaleDataError):
        await users.update(u)
    with pytest.raises(InvalidRequestError):
        await users.update(u)
    with pytest.raises(IntegrityError):
        await users.create(UserDb(name="B", email="a@x"))
    async with db.transaction() as s:
        await UserRepositoryAsync(s).create(UserDb(name="C", email="c@x"))
        with pytest.raises(IntegrityError):
            async with s.begin_nested():
                await UserRepositoryAsync(s).create(UserDb(name="C", email="c@x"))
    assert len(await users.get_page()) == 2
    assert await users.delete(u.id)
