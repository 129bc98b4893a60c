-- Everything the indexer keeps. Text columns beside `record` are copies made when the record was read: they are what
-- queries filter and join on, bounded in length so that a hostile record cannot overflow an index.

-- A repository is tracked from its first record of ours on, and stays so when it has none left.
CREATE TABLE repositories (
    did          text PRIMARY KEY,
    rev          text,                              -- of the last commit applied; NULL before the first
    data         text,                              -- CID of the MST root at that commit
    records_rev  text,                              -- of the last commit that touched records of ours
    status       text NOT NULL DEFAULT 'active',    -- as in #account: active, deactivated, suspended, takendown, deleted …
    handle       text,                              -- confirmed both ways; NULL: unknown or not confirmed
    pds          text,                              -- its endpoint, from the DID document
    account_seq  bigint,                            -- of the last #account applied, against replays; NULL: none yet
    account_host text,                              -- the relay that counts so
    resolve_at   timestamptz NOT NULL DEFAULT now(),  -- when to read the DID document (again)
    desynced     text,                              -- why a resync is needed; NULL: in step with the network
    resync_at    timestamptz NOT NULL DEFAULT now(),  -- not before
    resync_tries int NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX repositories_handle ON repositories (handle);
CREATE INDEX repositories_to_resolve ON repositories (resolve_at);
CREATE INDEX repositories_to_resync ON repositories (resync_at) WHERE desynced IS NOT NULL;

CREATE TABLE records (
    id            bigint GENERATED ALWAYS AS IDENTITY,  -- order of arrival: what listings page by
    uri           text PRIMARY KEY GENERATED ALWAYS AS ('at://' || did || '/' || collection || '/' || rkey) STORED,
    did           text NOT NULL,
    collection    text NOT NULL,
    rkey          text NOT NULL,
    kind          text,                             -- schema, dataset, lens, label; NULL: a collection we do not know
    cid           text NOT NULL,
    rev           text NOT NULL,                    -- the commit that wrote it
    record        jsonb NOT NULL,                   -- verbatim, in the atproto JSON form
    problems      text[] NOT NULL DEFAULT '{}',     -- what its lexicon says against it
    verified      boolean NOT NULL DEFAULT false,   -- signature, CID and inclusion were checked
    indexed_at    timestamptz NOT NULL DEFAULT now(),
    name          text,
    version       text,                             -- of a schema or a label
    schema_ref    text,                             -- of a dataset, as tags
    tags          text[],
    source_schema text,                             -- of a lens, as target_schema
    target_schema text,
    dataset_ref   text                              -- of a label
);
CREATE INDEX records_by_kind ON records (kind, id);
CREATE INDEX records_by_repository ON records (did, kind, id);
CREATE INDEX datasets_by_schema ON records (schema_ref) WHERE schema_ref IS NOT NULL;
CREATE INDEX datasets_by_tag ON records USING gin (tags) WHERE tags IS NOT NULL;
CREATE INDEX lenses_by_source ON records (source_schema) WHERE source_schema IS NOT NULL;
CREATE INDEX lenses_by_target ON records (target_schema) WHERE target_schema IS NOT NULL;
CREATE INDEX labels_by_dataset ON records (dataset_ref) WHERE dataset_ref IS NOT NULL;

-- How far each relay was read. Moves in the transaction that stores what was read.
CREATE TABLE cursors (
    host       text PRIMARY KEY,
    seq        bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Datasets that the search engine has yet to look at again. A row leaves when the engine has it durably.
CREATE TABLE search_outbox (
    id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uri text NOT NULL
);

-- What could not be understood, with its bytes, so that it can be replayed after a fix. One row per digest and reason,
-- until the table has reached its largest size; quarantine_counts goes on counting.
CREATE TABLE quarantine (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reason     text NOT NULL,
    digest     bytea NOT NULL,                      -- SHA-256 of the bytes
    detail     text NOT NULL,
    source     text NOT NULL,                       -- the relay or PDS it came from
    seq        bigint,
    did        text,
    bytes      bytea NOT NULL,
    times      bigint NOT NULL DEFAULT 1,
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (digest, reason)
);
CREATE TABLE quarantine_counts (
    reason text PRIMARY KEY,
    times  bigint NOT NULL
);

-- What the running indexer says of itself, about once a second: one row.
CREATE TABLE indexer_status (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    status     jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
