"""Users in the database, for async code. user_repository.py is the same without async and await."""

from sqlalchemy import select
from sqlalchemy.orm.interfaces import ORMOption

from database.models import UserDb
from repositories.repository_async import RepositoryAsync


class UserRepositoryAsync(RepositoryAsync[UserDb]):
    model = UserDb

    async def get_by_email(self, email: str, *options: ORMOption) -> UserDb | None:
        """Return the user with this e-mail address, in any case of letters, or None."""
        query = select(UserDb).where(UserDb.email == email.strip().lower())
        return next(iter(await self.read(query, *options)), None)
