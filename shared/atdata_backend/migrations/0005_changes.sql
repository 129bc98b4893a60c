-- What happens to records and accounts, in order. Triggers write it down, in the transaction that makes the change: no
-- statement can forget to. What cannot be seen is in it, too: who reads it leaves that out.
CREATE TABLE changes (
    seq        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    action     text NOT NULL,   -- create, update, delete: of a record; account: of all those of a repository
    did        text NOT NULL,
    collection text,            -- of a record, as rkey, kind and cid: the new one, or that of what was deleted
    rkey       text,
    kind       text,
    cid        text,
    status     text             -- of an account, from now on
);

-- Changes up to this one are forgotten.
CREATE TABLE changes_pruned (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    seq      bigint NOT NULL DEFAULT 0
);
INSERT INTO changes_pruned DEFAULT VALUES;

-- pg_advisory_xact_lock(0x61746963): one transaction at a time numbers changes, until it is committed, so that nobody
-- who has read up to a number finds a smaller one later. There is one writer; this is for a repair beside it.

-- For a batch of new records, a trigger for each statement costs a fifth of one for each row.
CREATE FUNCTION note_created() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1635019107);
    INSERT INTO changes (action, did, collection, rkey, kind, cid)
    SELECT 'create', did, collection, rkey, kind, cid FROM written;
    RETURN NULL;
END $$;
CREATE TRIGGER note_created AFTER INSERT ON records REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION note_created();

CREATE FUNCTION note_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1635019107);
    INSERT INTO changes (action, did, collection, rkey, kind, cid)
    SELECT 'delete', did, collection, rkey, kind, cid FROM deleted;
    RETURN NULL;
END $$;
CREATE TRIGGER note_deleted AFTER DELETE ON records REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION note_deleted();

-- That it is proven now is a change, too; that it is proven anew is none.
CREATE FUNCTION note_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1635019107);
    INSERT INTO changes (action, did, collection, rkey, kind, cid)
    VALUES ('update', new.did, new.collection, new.rkey, new.kind, new.cid);
    RETURN NULL;
END $$;
CREATE TRIGGER note_updated AFTER UPDATE ON records FOR EACH ROW
    WHEN (old.cid <> new.cid OR (old.verified_at IS NULL) <> (new.verified_at IS NULL))
    EXECUTE FUNCTION note_updated();

-- Who follows forgets the records of an account that is not active; with an account that is active again, they return.
CREATE FUNCTION note_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1635019107);
    INSERT INTO changes (action, did, status) VALUES ('account', new.did, new.status);
    IF new.status = 'active' THEN
        INSERT INTO changes (action, did, collection, rkey, kind, cid)
        SELECT 'create', did, collection, rkey, kind, cid FROM records WHERE did = new.did ORDER BY id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note_account AFTER UPDATE OF status ON repositories FOR EACH ROW
    WHEN (old.status <> new.status) EXECUTE FUNCTION note_account();
