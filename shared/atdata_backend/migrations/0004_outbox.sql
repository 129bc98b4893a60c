-- A dataset waits for the search engine once, however often it changes. `changes` counts that, so that a change which
-- comes while the dataset is handed over is not taken for done.
DELETE FROM search_outbox WHERE id NOT IN (SELECT min(id) FROM search_outbox GROUP BY uri);
ALTER TABLE search_outbox
    DROP CONSTRAINT search_outbox_pkey,
    ADD PRIMARY KEY (uri),
    ADD COLUMN changes bigint NOT NULL DEFAULT 1;
CREATE UNIQUE INDEX search_outbox_by_id ON search_outbox (id);
