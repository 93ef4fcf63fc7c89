"""Users in the database, for sync code. user_repository_async.py is the same with async and await."""

from sqlalchemy import select
from sqlalchemy.orm.interfaces import ORMOption

from database.models import UserDb
from repositories.repository import Repository


class UserRepository(Repository[UserDb]):
    model = UserDb

    def get_by_email(self, email: str, *options: ORMOption) -> UserDb | None:
        """Return the user with this e-mail address, in any case of letters, or None."""
        query = select(UserDb).where(UserDb.email == email.strip().lower())
        return next(iter(self.read(query, *options)), None)
