"""The statements of both repositories, made once for each model: SQLAlchemy takes a new one apart at each call."""

from functools import cache

from sqlalchemy import bindparam, delete, select

by_id = cache(lambda cls: select(cls).where(cls.id == bindparam("id")))
page = cache(lambda cls: select(cls).where(cls.id > bindparam("after_id")).order_by(cls.id).limit(bindparam("limit")))
delete_by_id = cache(lambda cls: delete(cls).where(cls.id == bindparam("id")))
