-- What a publisher has of one name. Names have up to 1000 characters, and an index entry must fit a third of a page.
CREATE INDEX records_by_name ON records (did, kind, (left(name, 200)));

-- Handles by their beginning, whatever the collation of the database.
CREATE INDEX repositories_by_handle ON repositories (handle text_pattern_ops) WHERE handle IS NOT NULL;

-- Who publishes, and how many records of each kind: nobody waits for them to be counted. Triggers keep it, so that no
-- statement can forget to. Who has no such record left is not in it.
CREATE TABLE publishers (
    did        text PRIMARY KEY,
    datasets   bigint NOT NULL,
    schemas    bigint NOT NULL,
    lenses     bigint NOT NULL,
    labels     bigint NOT NULL,
    since      timestamptz NOT NULL,    -- when the first of them was stored; never changes, so that listings go by it
    indexed_at timestamptz NOT NULL     -- when one of them was last stored
);
CREATE INDEX publishers_by_age ON publishers (since, did);
CREATE INDEX publishers_by_datasets ON publishers (datasets, did);

INSERT INTO publishers
SELECT did, count(*) FILTER (WHERE kind = 'dataset'), count(*) FILTER (WHERE kind = 'schema'),
       count(*) FILTER (WHERE kind = 'lens'), count(*) FILTER (WHERE kind = 'label'), min(indexed_at), max(indexed_at)
FROM records WHERE kind IS NOT NULL GROUP BY did;

CREATE FUNCTION count_created() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO publishers AS p
    SELECT did, count(*) FILTER (WHERE kind = 'dataset'), count(*) FILTER (WHERE kind = 'schema'),
           count(*) FILTER (WHERE kind = 'lens'), count(*) FILTER (WHERE kind = 'label'),
           min(indexed_at), max(indexed_at)
    FROM written WHERE kind IS NOT NULL GROUP BY did
    ON CONFLICT (did) DO UPDATE SET
        datasets = p.datasets + excluded.datasets, schemas = p.schemas + excluded.schemas,
        lenses = p.lenses + excluded.lenses, labels = p.labels + excluded.labels,
        indexed_at = greatest(p.indexed_at, excluded.indexed_at);
    RETURN NULL;
END $$;
CREATE TRIGGER count_created AFTER INSERT ON records
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION count_created();

-- The kind of a record goes with its key, which does not change.
CREATE FUNCTION count_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE publishers p SET indexed_at = w.indexed_at
    FROM (SELECT did, max(indexed_at) AS indexed_at FROM written GROUP BY did) w
    WHERE p.did = w.did AND p.indexed_at < w.indexed_at;
    RETURN NULL;
END $$;
CREATE TRIGGER count_updated AFTER UPDATE ON records
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION count_updated();

CREATE FUNCTION count_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE publishers p SET
        datasets = p.datasets - g.datasets, schemas = p.schemas - g.schemas,
        lenses = p.lenses - g.lenses, labels = p.labels - g.labels
    FROM (
        SELECT did, count(*) FILTER (WHERE kind = 'dataset') AS datasets,
               count(*) FILTER (WHERE kind = 'schema') AS schemas, count(*) FILTER (WHERE kind = 'lens') AS lenses,
               count(*) FILTER (WHERE kind = 'label') AS labels
        FROM gone WHERE kind IS NOT NULL GROUP BY did
    ) g
    WHERE p.did = g.did;
    DELETE FROM publishers
    WHERE did IN (SELECT did FROM gone) AND (datasets, schemas, lenses, labels) = (0, 0, 0, 0);
    RETURN NULL;
END $$;
CREATE TRIGGER count_deleted AFTER DELETE ON records
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION count_deleted();
