"""The statements of both repositories, made once for each model: SQLAlchemy takes a new one apart at each call."""

from functools import cache

from sqlalchemy import bindparam, delete, select

by_id = cache(lambda row: select(row).where(row.id == bindparam("id")))
page = cache(lambda row: select(row).where(row.id > bindparam("after_id")).order_by(row.id).limit(bindparam("limit")))
delete_by_id = cache(lambda row: delete(row).where(row.id == bindparam("id")))
