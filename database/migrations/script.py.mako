"""${message}

Revision ID: ${up_revision}
Create Date: ${create_date}
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import String, Text
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}
% if "batch_op" in (upgrades or "") + (downgrades or ""):

# On SQLite a batch that changes a column or a constraint copies the table. The copy has
# no triggers, no AUTOINCREMENT, no COLLATE and no indexes of expressions. See
# "SQLite copies tables" in database/README.md.
% endif


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
