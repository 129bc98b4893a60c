-- A record that has its CID and yet becomes something else, which only happens to what is wrong or was, is a change.
DROP TRIGGER note_updated ON records;
CREATE TRIGGER note_updated AFTER UPDATE ON records FOR EACH ROW
    WHEN (old.cid <> new.cid OR (old.verified_at IS NULL) <> (new.verified_at IS NULL) OR old.record <> new.record)
    EXECUTE FUNCTION note_updated();
