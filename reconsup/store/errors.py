"""What can go wrong between reconsup and PostgreSQL, grouped by what the caller can do about it."""


class StoreUnavailable(Exception):
    """The database is away, restarting, full or too slow: keep the lease discipline, back off, try again."""


class StoreRefused(StoreUnavailable):
    """The database answers but does not let us in (password, role, database name): a person must act.

    Still a kind of "unavailable": a role may just be being made, so waiting for it is right, silence is not.
    """


class SchemaBehind(StoreUnavailable):
    """The tables are not those this program was built for: `reconsup migrate` must run first.

    Still a kind of "unavailable": whoever works waits until they are.
    """


class StoreRejected(Exception):
    """PostgreSQL refuses a value (a check of the other service, a text it cannot hold): the row, not the database."""
