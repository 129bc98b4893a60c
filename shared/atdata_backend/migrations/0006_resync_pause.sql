-- How long a repository is left alone after it was read whole: longer each time that it asks for that again at once.
ALTER TABLE repositories ADD COLUMN resync_pause interval NOT NULL DEFAULT '10 seconds';
