"""An MCP tool server that looks up the adapter of each tenant in an SQLite table.

    python tenants.py tenants.db add acme acme-lora     # takes effect from the next request on
    python tenants.py tenants.db add acme acme-lora --second acme-v2 --share 0.1 --prompt "You work for Acme."
    python tenants.py tenants.db                        # on standard input and output, as tenants.yaml starts it
    python tenants.py tenants.db --keep 60 http 8100    # at http://127.0.0.1:8100/mcp

It needs `pip install 'mcp>=2,<3'` only, and nothing of the router. Copy it and query your own database.
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
    second TEXT,                    -- a second adapter, on trial
    share REAL NOT NULL DEFAULT 0,  -- share of the tenant's users that get it, 0 to 1
    system_prompt TEXT
)
"""


class Tenants:
    """The table of tenants. It is read for every request, so changes take effect at once."""

    def __init__(self, file: Path, keep_s: float) -> None:
        self._file, self._keep_s = file, keep_s
        self._thread_local = threading.local()

    def answer(self, tenant: str) -> dict[str, Any]:
        """Return the answer of `classify_text` to a tenant's request."""
        query = "SELECT adapter, second, share, system_prompt FROM tenants WHERE tenant = ?"
        row = self._connection().execute(query, (tenant,)).fetchone()
        if row is None:
            return {"class": "shared", "confidence": 1.0}  # without `keep`: the tenant may be added at any time
        adapter, second, share, prompt = row
        answer: dict[str, Any] = {"class": "tenant", "confidence": 1.0, "model": adapter}
        if second is not None:
            del answer["model"]  # it would serve every request
            answer["models"] = [{"model": adapter, "score": 1 - share}, {"model": second, "score": share}]
        if prompt is not None:
            answer["system_prompt"] = prompt
        if self._keep_s > 0:
            answer["keep"] = {"by": "tenant", "seconds": self._keep_s}
        return answer

    def _connection(self) -> sqlite3.Connection:
        """Return the thread's own connection, so that no call waits for another. Reconnect if the file was replaced."""
        inode = self._file.stat().st_ino
        if getattr(self._thread_local, "inode", None) != inode:
            uri = f"{self._file.resolve().as_uri()}?mode=ro"
            self._thread_local.connection = sqlite3.connect(uri, uri=True, timeout=1)
            self._thread_local.inode = inode
        return self._thread_local.connection


def add(file: Path, *row: object) -> None:
    """Write a tenant's row, and replace an existing one."""
    connection = sqlite3.connect(file, timeout=10)
    with connection:
        connection.execute(TABLE)
        connection.execute("INSERT OR REPLACE INTO tenants VALUES (?, ?, ?, ?, ?)", row)
    connection.close()


def server(tenants: Tenants) -> MCPServer:
    """Return the server. Tools that are plain functions run in threads, one per concurrent request."""
    mcp_server = MCPServer("tenants", log_level="WARNING")

    @mcp_server.tool()
    def list_categories() -> dict[str, Any]:
        return {"categories": ["tenant", "shared"], "category_system_prompts": {}, "category_descriptions": {}}

    # The router sends the parameters that the tool declares. `user`, `headers` and `model` are available too.
    @mcp_server.tool()
    def classify_text(text: str, tenant: str = "") -> dict[str, Any]:
        return tenants.answer(tenant)

    return mcp_server


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Serve the MCP tool that returns the adapter of a tenant, or change its table."
    )
    parser.add_argument("table", type=Path)
    parser.add_argument(
        "--keep",
        type=float,
        default=0,
        metavar="SECONDS",
        help="time for which the router may keep an answer (default: 0, not at all)",
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("stdio", help="serve on standard input and output (default)")
    commands.add_parser("http", help="serve over streamable HTTP").add_argument("port", type=int)
    row = commands.add_parser("add", help="write a tenant's row")
    row.add_argument("tenant")
    row.add_argument("adapter")
    row.add_argument("--second", help="a second adapter, on trial")
    row.add_argument(
        "--share",
        type=float,
        default=0.1,
        help="share of the tenant's users that get the second adapter (default: %(default)s)",
    )
    row.add_argument("--prompt", help="the tenant's system prompt")
    args = parser.parse_args()
    if args.command == "add":
        add(args.table, args.tenant, args.adapter, args.second, args.share if args.second else 0, args.prompt)
    elif not args.table.is_file():
        sys.exit(
            f"table {args.table.absolute()} does not exist; create it with `{Path(__file__).name} {args.table} add ...`"
        )
    elif args.command == "http":
        server(Tenants(args.table, args.keep)).run("streamable-http", port=args.port)
    else:
        server(Tenants(args.table, args.keep)).run()


if __name__ == "__main__":
    main()
