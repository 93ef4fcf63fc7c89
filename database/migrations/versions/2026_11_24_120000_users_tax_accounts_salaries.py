"""users, tax accounts, salaries

Revision ID: 2fb5c23a4f71
Create Date: 2026-11-24 12:00:00+00:00
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2fb5c23a4f71"
down_revision = None
branch_labels = None
depends_on = None

# Spelled out, not imported from the models: a revision keeps doing the same when they move on.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MONEY = sa.Numeric(12, 2).with_variant(sa.Float(asdecimal=True, decimal_return_scale=2), "sqlite")
OPTIONS: dict[str, Any] = {
    "sqlite_autoincrement": True,
    "mysql_collate": "utf8mb4_bin",
    "mariadb_collate": "utf8mb4_bin",
}


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        **OPTIONS,
    )
    op.create_table(
        "salaries",
        sa.Column("id", ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("amount", MONEY, nullable=False),
        sa.Column("paid_on", sa.Date(), nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_salaries_user_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_salaries")),
        **OPTIONS,
    )
    op.create_index(op.f("ix_salaries_user_id"), "salaries", ["user_id"])

    op.create_table(
        "tax_accounts",
        sa.Column("id", ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("number", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["users.id"], name=op.f("fk_tax_accounts_id_users"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tax_accounts")),
        sa.UniqueConstraint("number", name=op.f("uq_tax_accounts_number")),
        **OPTIONS,
    )


def downgrade() -> None:
    op.drop_table("tax_accounts")
    op.drop_table("salaries")
    op.drop_table("users")
