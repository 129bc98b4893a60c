-- What a source that brings no proof said of a record, for the record's host to prove.

CREATE TABLE confirmations (
    uri        text PRIMARY KEY GENERATED ALWAYS AS ('at://' || did || '/' || collection || '/' || rkey) STORED,
    did        text NOT NULL,
    collection text NOT NULL,
    rkey       text NOT NULL,
    rev        text NOT NULL,                       -- of the commit that is said to have written or deleted it
    at         timestamptz NOT NULL DEFAULT now(),  -- when to ask
    tries      int NOT NULL DEFAULT 0
);
CREATE INDEX confirmations_due ON confirmations (at);
CREATE INDEX confirmations_by_repository ON confirmations (did);
