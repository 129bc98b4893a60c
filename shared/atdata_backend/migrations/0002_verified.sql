-- The index proves itself: keys and proofs of commits, frames that wait for a resync, comparisons with the hosts.

ALTER TABLE repositories
    DROP COLUMN records_rev,
    ADD COLUMN signing_key       text,          -- Multikey, from the DID document
    ADD COLUMN resolved_at       timestamptz,   -- when that was read; NULL: never, or it was said to have changed
    ADD COLUMN resync_started_at timestamptz,   -- of the last one
    ADD COLUMN resynced_at       timestamptz,   -- when it was last read whole
    ADD COLUMN trouble           text,          -- why that failed the last time
    ADD COLUMN desynced_at       timestamptz,   -- when what is in `desynced` was found: a snapshot from before does not mend it
    ADD COLUMN wanted_rev        text,          -- the stream has told of it: an older snapshot is not the latest
    ADD COLUMN behind_rev        text,          -- what its host last said, if that is older than what is held
    ADD COLUMN behind_times      int NOT NULL DEFAULT 0,  -- how often in a row
    ADD COLUMN check_at          timestamptz,   -- when to compare its rev with its host's; NULL: no need
    ADD COLUMN check_tries       int NOT NULL DEFAULT 0,
    ADD COLUMN purge_at          timestamptz;   -- when to ask its host whether it was deleted indeed
CREATE INDEX repositories_to_check ON repositories (check_at) WHERE check_at IS NOT NULL;
CREATE INDEX repositories_to_purge ON repositories (purge_at) WHERE purge_at IS NOT NULL;

-- What was taken on trust before is read again, and proven.
ALTER TABLE records
    DROP COLUMN verified,
    ADD COLUMN verified_at  timestamptz,        -- when signature, CID and place in the tree were checked; NULL: not yet
    ADD COLUMN verified_key text,               -- with this key of the repository
    ADD COLUMN commit_cid   text;               -- in this commit
CREATE INDEX records_unverified ON records (did) WHERE verified_at IS NULL;
UPDATE repositories SET desynced = coalesce(desynced, 'read by a version that did not verify'), resync_at = now();

-- Frames of repositories that are out of step: they are applied, in order, when their repository was read.
CREATE TABLE pending_frames (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    did         text NOT NULL,
    seq         bigint,
    frame       bytea NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX pending_frames_by_repository ON pending_frames (did, id);

-- Comparisons of all repositories with their hosts: after a gap in the stream, or on demand. Requested in the
-- transaction that moves the cursor over the gap.
CREATE TABLE sweeps (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reason      text NOT NULL,
    started_at  timestamptz,
    finished_at timestamptz,
    checked     bigint NOT NULL DEFAULT 0,
    differing   bigint NOT NULL DEFAULT 0,      -- read whole, therefore
    unreachable bigint NOT NULL DEFAULT 0       -- asked again later
);
