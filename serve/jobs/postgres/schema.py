"""The tables in PostgreSQL, in a schema of their own: made by the first server, checked by all others."""

import secrets

from psycopg import errors

from latentrt.serve.jobs.store import StateError

from .connections import Connection

VERSION = 1
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"  # until the transaction ends
_TABLES = """
CREATE TABLE jobs (
    place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- the order in which they came
    id text NOT NULL UNIQUE,
    client text NOT NULL,
    weight float8 NOT NULL,
    priority smallint NOT NULL,  -- 0 is drawn before 1
    model text NOT NULL,
    document text NOT NULL,  -- '' once it has expired
    images int NOT NULL,
    state text NOT NULL CHECK (state IN ('waiting', 'running', 'done', 'failed', 'cancelled')),
    whole boolean NOT NULL,  -- whether its inputs have been written, so that it can be claimed
    alone boolean NOT NULL DEFAULT false,
    number int NOT NULL DEFAULT 0,  -- of the latest claim, the fencing token; never falls
    attempts int NOT NULL DEFAULT 0,  -- claims that count
    server text,  -- that made the latest claim
    bytes bigint NOT NULL,  -- that it takes beside its inputs, or may take until it has ended
    deadline float8,  -- times are seconds since 1970, by the clock of the database
    created float8 NOT NULL,
    started float8,
    ended float8,
    expires float8,
    failure text,  -- JSON
    pictures text NOT NULL DEFAULT '[]',  -- JSON
    timings text NOT NULL DEFAULT '{}',  -- JSON
    key text,  -- the client's Idempotency-Key
    key_digest text,  -- of the request that had it
    key_until float8
);
CREATE INDEX jobs_to_claim ON jobs (priority, place) INCLUDE (images) WHERE state = 'waiting' AND whole;
CREATE INDEX jobs_to_write ON jobs (created) WHERE NOT whole;
CREATE INDEX jobs_under_way ON jobs (server) WHERE state = 'running';
CREATE INDEX jobs_of_client ON jobs (client, place);
CREATE INDEX jobs_to_expire ON jobs (expires) WHERE expires IS NOT NULL;
CREATE UNIQUE INDEX jobs_by_key ON jobs (client, key) WHERE key IS NOT NULL;
CREATE TABLE inputs (
    job text NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    sha256 text NOT NULL,
    size bigint NOT NULL,
    PRIMARY KEY (job, sha256)
);
CREATE INDEX inputs_by_hash ON inputs (sha256);
CREATE TABLE clients (  -- sums over jobs, kept by triggers: a new job is checked against them
    client text PRIMARY KEY,
    bytes bigint NOT NULL,
    open int NOT NULL  -- jobs that have not ended
);
CREATE TABLE servers (
    id text PRIMARY KEY,
    name text NOT NULL,  -- for people
    lease timestamptz NOT NULL  -- until then nobody takes the jobs that it has claimed
);
CREATE TABLE meta (
    version int NOT NULL,
    store text NOT NULL,  -- which one this is; its files say the same
    marked boolean NOT NULL DEFAULT false,  -- whether they say it
    swept float8 NOT NULL DEFAULT 0  -- when files without a job were looked for
);
"""

# What a statement adds to the sums of clients. Rows are locked in the order of their names: none waits in a circle.
_SUMS = """
CREATE FUNCTION clients_at_{event}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO clients SELECT client, sum(bytes), sum(open) FROM ({changes}) AS changes
    GROUP BY client HAVING sum(bytes) <> 0 OR sum(open) <> 0 ORDER BY client
    ON CONFLICT (client) DO UPDATE SET bytes = clients.bytes + EXCLUDED.bytes, open = clients.open + EXCLUDED.open;
    RETURN NULL;
END $$;
CREATE TRIGGER clients_at_{event} AFTER {event} ON jobs REFERENCING {tables}
FOR EACH STATEMENT EXECUTE FUNCTION clients_at_{event}();
"""
_CAME = "SELECT client, bytes, (state IN ('waiting', 'running'))::int AS open FROM came"
_WENT = "SELECT client, -bytes AS bytes, -(state IN ('waiting', 'running'))::int AS open FROM went"
_TRIGGERS = (
    ("INSERT", "NEW TABLE AS came", _CAME),
    ("UPDATE", "OLD TABLE AS went NEW TABLE AS came", f"{_CAME} UNION ALL {_WENT}"),
    ("DELETE", "OLD TABLE AS went", _WENT),
)


def prepare(connection: Connection, schema: str) -> str:
    """Make the tables if there are none; the id of the store. Raises `StateError`, `psycopg.Error`."""
    try:
        with connection.transaction():
            connection.execute(LOCK, [f"{schema} is made"])
            if not _is_there(connection, schema):
                _make(connection, schema)
    except errors.InsufficientPrivilege as error:
        database, user = connection.info.dbname, connection.info.user
        raise StateError(
            f"the tables of jobs cannot be made in the database {database}: {error.diag.message_primary}. Let its "
            f'owner run CREATE SCHEMA "{schema}" AUTHORIZATION "{user}"'
        ) from error
    try:
        row = connection.execute(f'SELECT version, store FROM "{schema}".meta').fetchone()
    except errors.UndefinedTable as error:
        raise StateError(f"the schema {schema} is of another program") from error
    except errors.InsufficientPrivilege as error:
        raise StateError(
            f"the user {connection.info.user} may not use the schema {schema}: {error.diag.message_primary}"
        ) from error
    if row is None or row["version"] != VERSION:
        raise StateError(
            f"the schema {schema} has version {row and row['version']}, and this latentrt reads version {VERSION}: use "
            "the latentrt that wrote it, or another database"
        )
    store: str = row["store"]
    return store


def _is_there(connection: Connection, schema: str) -> bool:
    """Whether the schema has tables, of ours or of others."""
    sql = "SELECT 1 FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s LIMIT 1"
    return connection.execute(sql, [schema]).fetchone() is not None


def _make(connection: Connection, schema: str) -> None:
    found = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchone()
    if found is None:  # IF NOT EXISTS asks for the right to make schemas even if it exists
        connection.execute(f'CREATE SCHEMA "{schema}"')
    connection.execute(_TABLES)
    for event, tables, changes in _TRIGGERS:
        connection.execute(_SUMS.format(event=event, tables=tables, changes=changes))
    connection.execute("INSERT INTO meta (version, store) VALUES (%s, %s)", [VERSION, secrets.token_hex(8)])


def reason(error: Exception) -> str:
    """What a library says, on one line. PostgreSQL puts no passwords into it."""
    return " ".join(str(error).split())
