"""Where the two services meet: the database, the search engine and the settings that both need."""
