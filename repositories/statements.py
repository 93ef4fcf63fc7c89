"""The statements of both repositories. Made once for each model: SQLAlchemy takes a new one apart at each call."""

from functools import cache
from typing import Any

from sqlalchemy import Delete, Select, bindparam, delete, select

from database.base import Base


@cache
def by_id(model: type[Base]) -> Select[Any]:
    return select(model).where(model.id == bindparam("id"))


@cache
def page(model: type[Base]) -> Select[Any]:
    return select(model).where(model.id > bindparam("after_id")).order_by(model.id).limit(bindparam("limit"))


@cache
def delete_by_id(model: type[Base]) -> Delete:
    return delete(model).where(model.id == bindparam("id")).execution_options(synchronize_session=False)
