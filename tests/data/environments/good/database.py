"""A data base in memory; what SQL refuses is raised, and told to the model."""

import json
import sqlite3


class Database:
    def __init__(self):
        self._connection = None

    def reset(
        self, setup="create table items (name text, price real); insert into items values ('tea', 2.5)", **kwargs
    ):
        if self._connection is not None:
            self._connection.close()
        self._connection = sqlite3.connect(":memory:")
        self._connection.executescript(setup)
        self.queries = 0

    def query(self, sql: str, limit: int = 20) -> str:
        """Run one SQL statement.

        Args:
            sql: The statement.
            limit: Most rows to return.
        """
        self.queries += 1
        rows = self._connection.execute(sql).fetchmany(max(0, limit))
        return json.dumps(rows)

    def tables(self) -> str:
        """List the tables."""
        rows = self._connection.execute("select name from sqlite_master where type = 'table' order by name").fetchall()
        return ", ".join(name for (name,) in rows)
