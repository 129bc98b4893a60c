"""The whole system on one machine: embedded Postgres and search, indexer and AppView, one process tree."""
