"""users, tax accounts, salaries

Revision ID: 2fb5c23a4f71
Create Date: 2026-11-24 12:00:00+00:00
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "2fb5c23a4f71"
down_revision = None
branch_labels = None
depends_on = None

# Copies of the types in database/base.py: this revision stays the same when those
# change. A revision that Alembic writes imports its types.
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MONEY = sa.Numeric(12, 2).with_variant(sa.Float(), "sqlite")
UTC_DATETIME = sa.DateTime(timezone=True).with_variant(
    mysql.DATETIME(fsp=6), "mysql", "mariadb"
)


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("created_at", UTC_DATETIME, nullable=False),
        sa.Column("version_id", sa.Integer(), server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "salaries",
        sa.Column("id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("amount", MONEY, nullable=False),
        sa.Column("paid_on", sa.Date(), nullable=False),
        sa.Column("version_id", sa.Integer(), server_default="1", nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_salaries_user_id_users"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_salaries")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_salaries_user_id"), "salaries", ["user_id"])
    op.create_table(
        "tax_accounts",
        sa.Column("id", ID, nullable=False),
        sa.Column("number", sa.String(32), nullable=False),
        sa.Column("version_id", sa.Integer(), server_default="1", nullable=False),
        sa.ForeignKeyConstraint(
            ["id"],
            ["users.id"],
            name=op.f("fk_tax_accounts_id_users"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tax_accounts")),
        sa.UniqueConstraint("number", name=op.f("uq_tax_accounts_number")),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    op.drop_table("tax_accounts")
    op.drop_table("salaries")
    op.drop_table("users")
