"""The demo's server: imports what a service would, fills a table, and answers each connection with a line."""

import asyncio
import decimal
import email.message
import http.client
import json
import sqlite3
import socket
import sys

ROWS = 20000
PORT = 8080


def table():
    database = sqlite3.connect(":memory:")
    database.execute("create table prices (name text primary key, price text)")
    rows = ((f"item-{n}", str(decimal.Decimal(n) / 7)) for n in range(ROWS))
    database.executemany("insert into prices values (?, ?)", rows)
    return database


async def main():
    database = table()

    async def answer(_reader, writer):
        (count,) = database.execute("select count(*) from prices").fetchone()
        line = {"host": socket.gethostname(), "python": sys.version.split()[0], "rows": count}
        writer.write(json.dumps(line).encode() + b"\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", PORT)
    print(f"serving on port {PORT} with {len(sys.modules)} modules", flush=True)
    await server.serve_forever()


asyncio.run(main())
