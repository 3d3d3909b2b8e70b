"""Jobs in PostgreSQL, of several servers. Needs the extra `postgres`."""
