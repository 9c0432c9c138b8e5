"""The tables of a spool in PostgreSQL: those of `gateway.spool.schema`, and who works on them.

`message.claimed` is the number of the worker that has it in hand, 0 for nobody. Content up to 256 KiB lies in
`content`, of more the head; the rest in rows of `chunk`, which `message.file` says. JSON is kept as text: jsonb has no
room for ``\\u0000``.
"""

from __future__ import annotations

from typing import Final

from gateway.spool.postgres.database import Database
from gateway.spool.spool import SpoolError

VERSION: Final = 1
CHUNK: Final = 256 << 10

INSERT: Final = (
    "WITH stored AS (INSERT INTO content (head, body) VALUES (?, ?) RETURNING n)"
    " INSERT INTO message (content, id, state, claimed, due, received, size, envelope, slots, owed, trusted, reason,"
    " skip, eight_bit, file, priority)"
    " SELECT n, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM stored RETURNING content"
)
"""Content and message in one statement. The values after the content's are those of `schema.new_row`."""

COUNT: Final = (
    "SELECT 'queued', count(*) FROM message WHERE state = 'queued' AND claimed = 0"
    " UNION ALL SELECT 'queued', count(*) FROM message WHERE state = 'queued' AND claimed <> 0"
    " UNION ALL SELECT state, count(*) FROM message WHERE state <> 'queued' GROUP BY state"
)
"""Messages per state. The indexes hold all that this asks for."""

_ORDERED: Final = 'text COLLATE "C"'

_SCRIPT: Final = f"""
CREATE TABLE message (
    id {_ORDERED} PRIMARY KEY, state text NOT NULL, claimed integer NOT NULL, due double precision NOT NULL,
    received double precision NOT NULL, size bigint NOT NULL, envelope text NOT NULL, slots text NOT NULL,
    owed boolean NOT NULL, trusted boolean NOT NULL, warned boolean NOT NULL DEFAULT false, reason text NOT NULL,
    content bigint, skip integer NOT NULL, eight_bit boolean NOT NULL, file boolean NOT NULL,
    lane {_ORDERED} NOT NULL DEFAULT '', priority smallint NOT NULL DEFAULT 1,
    deadline double precision NOT NULL DEFAULT 1e18
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
CREATE INDEX message_lane ON message (lane, priority, due) WHERE state = 'queued' AND claimed = 0;
CREATE INDEX message_deadline ON message (deadline) WHERE state = 'queued' AND claimed = 0;
CREATE INDEX message_oldest ON message (received) WHERE state = 'queued' AND claimed = 0;
CREATE INDEX message_aside ON message (state, received) WHERE state <> 'queued';
CREATE INDEX message_claimed ON message (claimed) WHERE claimed <> 0;
CREATE FUNCTION message_amended() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.lane := ''; RETURN NEW; END $$;
CREATE TRIGGER message_amended BEFORE UPDATE OF reason, envelope ON message FOR EACH ROW
    WHEN (NEW.lane <> '' AND (NEW.reason <> OLD.reason OR NEW.envelope <> OLD.envelope))
    EXECUTE FUNCTION message_amended();

CREATE TABLE content (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, head bytea NOT NULL, body bytea)
    WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
ALTER TABLE content ALTER body SET STORAGE EXTERNAL, ALTER head SET STORAGE EXTERNAL;
CREATE TABLE chunk (n bigint NOT NULL, at integer NOT NULL, data bytea NOT NULL, PRIMARY KEY (n, at))
    WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
ALTER TABLE chunk ALTER data SET STORAGE EXTERNAL;

CREATE TABLE record (id {_ORDERED} PRIMARY KEY, body text NOT NULL);
CREATE TABLE attempt (id {_ORDERED}, n bigint, body text NOT NULL, PRIMARY KEY (id, n));
CREATE TABLE kept_by (worker integer PRIMARY KEY, records bigint NOT NULL, octets bigint NOT NULL);
CREATE VIEW kept AS SELECT coalesce(sum(records), 0)::bigint AS records, coalesce(sum(octets), 0)::bigint AS octets
    FROM kept_by;
CREATE FUNCTION count_kept() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        own integer := coalesce(nullif(current_setting('gatepost.worker', true), '')::integer, 0);
        more integer := CASE WHEN TG_TABLE_NAME <> 'record' OR TG_OP = 'UPDATE' THEN 0
            WHEN TG_OP = 'INSERT' THEN 1 ELSE -1 END;
        octets_more bigint := 0;
    BEGIN
        IF TG_OP <> 'DELETE' THEN octets_more := octet_length(NEW.body); END IF;
        IF TG_OP <> 'INSERT' THEN octets_more := octets_more - octet_length(OLD.body); END IF;
        INSERT INTO @schema@.kept_by AS k VALUES (own, more, octets_more) ON CONFLICT (worker)
            DO UPDATE SET records = k.records + excluded.records, octets = k.octets + excluded.octets;
        RETURN NULL;
    END $$;
CREATE TRIGGER record_kept AFTER INSERT OR UPDATE OR DELETE ON record FOR EACH ROW EXECUTE FUNCTION count_kept();
CREATE TRIGGER attempt_kept AFTER INSERT OR UPDATE OR DELETE ON attempt FOR EACH ROW EXECUTE FUNCTION count_kept();

CREATE TABLE worker (
    n integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, place text NOT NULL, lease double precision NOT NULL,
    begun timestamptz NOT NULL DEFAULT clock_timestamp(), seen timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE suspension (
    destination {_ORDERED} PRIMARY KEY, suspended_by text NOT NULL, since double precision NOT NULL,
    reason text NOT NULL, ended double precision, ended_by text NOT NULL DEFAULT ''
);
CREATE TABLE version (schema integer NOT NULL);
INSERT INTO version VALUES ({VERSION});
"""
"""Counting by worker, since one row for all would have everybody wait for everybody else's commit."""


def exist(db: Database, schema: str) -> bool:
    """Whether the tables are there. Raises `SpoolError` for those of another version."""
    # Not to_regclass, which may go by what the session knew before others made them.
    query = "SELECT 1 FROM pg_tables WHERE schemaname = ? AND tablename = 'version'"
    if db.execute(query, (schema,)).fetchone() is None:
        return False
    found = db.execute("SELECT schema FROM version").fetchall()
    if found != [(VERSION,)]:
        raise SpoolError(f"the spool was written by another version of Gatepost (schema {found and found[0][0]})")
    return True


def make(db: Database, schema: str) -> None:
    """Make the tables unless they are there; several gateways may do so at once. Raises `SpoolError`."""
    if exist(db, schema):
        return
    db.execute("BEGIN")
    try:
        db.execute("SELECT pg_advisory_xact_lock(hashtext(?), hashtext(?))", ("gatepost schema", schema))
        if not exist(db, schema):
            if db.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", (schema,)).fetchone() is None:
                db.run(f'CREATE SCHEMA "{schema}"')
            db.run(_SCRIPT.replace("@schema@", f'"{schema}"'))
        db.execute("COMMIT")
    except BaseException:
        if not db.lost:
            db.execute("ROLLBACK")
        raise
