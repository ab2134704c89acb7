"""Alembic's entry: runs the revisions over the connection that `reconsup.store.migrate` prepared.

The connection is in autocommit mode: every step of a revision is a transaction of its own (`reconsup.store.ddl`),
so that no lock is held from one step to the next and an interrupted migration goes on where it was.
"""

from alembic import context

from reconsup.store.revision import VERSION_TABLE
from reconsup.store.schema import SCHEMA, metadata

config = context.config
if "connection" not in config.attributes:
    raise SystemExit("use `reconsup migrate`: it prepares the connection that these migrations need")

context.configure(
    connection=config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    version_table_schema=SCHEMA,
    transactional_ddl=False,
)
context.run_migrations()
