"""The review page: a snapshot of the tables in memory, questions to it, a local server, the page itself."""
