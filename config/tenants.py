"""A tool server that knows each tenant's adapter from a table in SQLite.

    python tenants.py tenants.db add acme acme-lora     # from the next request on
    python tenants.py tenants.db add acme acme-lora --second acme-v2 --share 0.1 --prompt "You work for Acme."
    python tenants.py tenants.db                        # over standard streams, as tenants.yaml starts it
    python tenants.py tenants.db --keep 60 http 8100    # at http://127.0.0.1:8100/mcp

Needs `pip install 'mcp>=2,<3'` and nothing else of the router's: copy it, and ask your own database.
"""

import argparse
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import MCPServer

TABLE = """
CREATE TABLE IF NOT EXISTS tenants (
    tenant TEXT PRIMARY KEY,
    adapter TEXT NOT NULL,
    second TEXT,                    -- an adapter on trial
    share REAL NOT NULL DEFAULT 0,  -- of the tenant's users who get it, 0 to 1
    system_prompt TEXT
)
"""


class Tenants:
    """The table, read anew for every request: what is written to it counts from the next one on."""

    def __init__(self, file: Path, keep_s: float) -> None:
        self._file, self._keep_s = file, keep_s
        self._of_thread = threading.local()

    def answer(self, tenant: str) -> dict[str, Any]:
        """What `classify_text` says of a tenant's request."""
        asked = "SELECT adapter, second, share, system_prompt FROM tenants WHERE tenant = ?"
        row = self._connection().execute(asked, (tenant,)).fetchone()
        if row is None:
            return {"class": "shared", "confidence": 1.0}  # not kept: it may be a tenant a moment later
        adapter, second, share, prompt = row
        answer: dict[str, Any] = {"class": "tenant", "confidence": 1.0, "model": adapter}
        if second is not None:
            del answer["model"]  # which would take every request
            answer["models"] = [{"model": adapter, "score": 1 - share}, {"model": second, "score": share}]
        if prompt is not None:
            answer["system_prompt"] = prompt
        if self._keep_s > 0:
            answer["keep"] = {"by": "tenant", "seconds": self._keep_s}
        return answer

    def _connection(self) -> sqlite3.Connection:
        """One a thread, so that no call waits for another; a new one where the file was replaced."""
        found = self._file.stat()
        if getattr(self._of_thread, "inode", None) != found.st_ino:
            uri = f"{self._file.resolve().as_uri()}?mode=ro"
            self._of_thread.connection = sqlite3.connect(uri, uri=True, timeout=1)
            self._of_thread.inode = found.st_ino
        return self._of_thread.connection


def add(file: Path, *row: object) -> None:
    """Writes a tenant's row, over the one before."""
    connection = sqlite3.connect(file, timeout=10)
    with connection:
        connection.execute(TABLE)
        connection.execute("INSERT OR REPLACE INTO tenants VALUES (?, ?, ?, ?, ?)", row)
    connection.close()


def server(tenants: Tenants) -> MCPServer:
    """Tools that are plain functions run in threads, as many at once as there are requests."""
    found = MCPServer("tenants", log_level="WARNING")

    @found.tool()
    def list_categories() -> dict[str, Any]:
        return {"categories": ["tenant", "shared"], "category_system_prompts": {}, "category_descriptions": {}}

    # What stands here is what the tool is sent: `user`, `headers` and `model` may be asked for likewise.
    @found.tool()
    def classify_text(text: str, tenant: str = "") -> dict[str, Any]:
        return tenants.answer(tenant)

    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Says which adapter a tenant's requests get.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--keep", type=float, default=0, metavar="SECONDS", help="for which an answer may be kept")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("stdio", help="the default")
    commands.add_parser("http", help="streamable HTTP").add_argument("port", type=int)
    row = commands.add_parser("add", help="write a tenant's row")
    row.add_argument("tenant")
    row.add_argument("adapter")
    row.add_argument("--second", help="an adapter on trial")
    row.add_argument("--share", type=float, default=0.1, help="of the tenant's users who get it")
    row.add_argument("--prompt", help="the tenant's system prompt")
    given = parser.parse_args()
    if given.command == "add":
        add(given.table, given.tenant, given.adapter, given.second, given.share if given.second else 0, given.prompt)
    elif not given.table.is_file():
        sys.exit(f"there is no table {given.table.absolute()}: `{Path(__file__).name} {given.table} add ...` makes one")
    elif given.command == "http":
        server(Tenants(given.table, given.keep)).run("streamable-http", port=given.port)
    else:
        server(Tenants(given.table, given.keep)).run()


if __name__ == "__main__":
    main()
