"""The indexer: the relay firehose in, Postgres and the search engine out."""
