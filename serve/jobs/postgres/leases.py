"""Leases of servers in PostgreSQL, by the clock of the database: who has none loses the jobs that it has claimed."""

from latentrt.serve.jobs.store import MAX_ATTEMPTS, POISON, Claim, Failure

from .connections import Connections
from .notices import WAITS
from .table import Table

# Whose server has no lease. When the database has started, each server first gets the time to come back.
_GONE = """
state = 'running' AND NOT EXISTS (SELECT FROM servers WHERE servers.id = server AND lease > clock_timestamp())
AND clock_timestamp() > pg_postmaster_start_time() + %s * interval '1 second'
"""


class Lease:
    """The lease of one server."""

    def __init__(self, connections: Connections, table: Table, seconds: float) -> None:
        self._connections, self._table, self.seconds = connections, table, seconds

    def renew(self) -> set[Claim]:
        """Keep the lease from now on; the claims of this server as the database has them."""
        with self._connections.connected() as connection:
            with connection.transaction():
                connection.execute("SET LOCAL synchronous_commit TO off")  # a renewal that is lost comes again soon
                connection.execute(
                    "INSERT INTO servers VALUES (%s, %s, clock_timestamp() + %s * interval '1 second') "
                    "ON CONFLICT (id) DO UPDATE SET lease = EXCLUDED.lease",
                    [self._table.server, self._table.server_name, self.seconds],
                )
            sql = "SELECT id, number FROM jobs WHERE server = %s AND state = 'running'"
            return {Claim(row["id"], row["number"]) for row in connection.execute(sql, [self._table.server])}

    def take_back(self) -> int:
        """Make jobs wait again whose server has no lease any more; how many there were.

        They are drawn alone from now on. Those that have no attempt left fail.
        """
        poison = self._table.end_jobs(
            f"attempts >= %s AND {_GONE}", (MAX_ATTEMPTS, self.seconds), "failed", Failure("poison", POISON)
        )
        again = (
            f"WITH gone AS (SELECT place FROM jobs WHERE {_GONE} FOR UPDATE SKIP LOCKED) "
            "UPDATE jobs SET state = 'waiting', server = NULL, alone = true FROM gone WHERE jobs.place = gone.place "
            f"RETURNING {self._table.notice(WAITS)}"
        )
        return poison + len(self._table.rows(again, self.seconds))

    def leave(self) -> None:
        """Give back the lease, with all that is still claimed."""
        self._table.rows(
            "UPDATE jobs SET state = 'waiting', server = NULL, attempts = attempts - 1 "
            f"WHERE server = %s AND state = 'running' RETURNING {self._table.notice(WAITS)}",
            self._table.server,
        )
        self._table.rows("DELETE FROM servers WHERE id = %s RETURNING id", self._table.server)
