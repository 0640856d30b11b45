"""A ClickHouse server's HTTP interface over the embedded engine, so that the driver's real HTTP
client is proved where no server can be installed.

    python clickhouse_front.py FOLDER [PORT]

prints `listening on PORT`. It speaks as much of https://clickhouse.com/docs/interfaces/http as the
driver uses: a statement in `query` or at the head of the body, settings and `param_` values in the
URL, compressed bodies, errors with their code in a header. `POST /away?seconds=S` makes it refuse
connections' requests with 503 for so long, as a server that restarts behind a proxy does.
"""

import asyncio
import gzip
import json
import re
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import chdb
import lz4.frame
from aiohttp import web
from backports import zstd

TRANSPORT = {
    "buffer_size", "client_protocol_version", "compress", "database", "decompress",
    "default_format", "enable_http_compression", "http_headers_progress_interval_ms", "password",
    "query", "query_id", "quota_key", "role", "send_progress_in_http_headers", "session_check",
    "session_id", "session_timeout", "user", "wait_end_of_query",
}  # fmt: skip
FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
INSERT = re.compile(r"^\s*INSERT\s+INTO\s+(.+?)\s+FORMAT\s+(\w+)\s*$", re.IGNORECASE | re.DOTALL)


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Front:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Keeps the engine's folder open between requests.
        self.first = chdb.connect(str(folder))
        self.away_until = 0.0

    async def away(self, request: web.Request) -> web.Response:
        self.away_until = time.monotonic() + float(request.query["seconds"])
        return web.Response(text="ok")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if time.monotonic() < self.away_until:
            return web.Response(status=503, text="away")
        query = dict(request.query)
        if request.content_type.startswith("multipart/"):
            # The driver sends what is too long for a URL as a form.
            form = await request.post()
            query |= {name: str(value) for name, value in form.items()}
            body = b""
        else:
            body = decompressed(await request.read(), request.headers.get("Content-Encoding", ""))
        return await asyncio.to_thread(self.answer, query, body)

    def answer(self, query: dict[str, str], body: bytes) -> web.Response:
        statement = query.get("query", "")
        data = b""
        if statement:
            data = body
        else:
            head, _, rest = body.partition(b"\n")
            if INSERT.match(head.decode(errors="replace")):
                statement, data = head.decode(), rest
            else:
                statement = body.decode()
        connection = chdb.connect(str(self.folder))
        try:
            return self.run(connection, query, statement, data)
        except Exception as error:
            text = str(error)
            code = re.search(r"Code: (\d+)", text)
            return web.Response(
                status=500,
                text=text,
                headers={"X-ClickHouse-Exception-Code": code[1] if code else "1002"},
            )
        finally:
            connection.close()

    def run(
        self, connection: Any, query: dict[str, str], statement: str, data: bytes
    ) -> web.Response:
        database = query.get("database", "")
        if database:
            connection.query(f"USE `{database}`", "TabSeparated")
        # Last, because nothing else can be set after it.
        for key in sorted(query, key=lambda name: name == "readonly"):
            if key not in TRANSPORT and not key.startswith("param_"):
                connection.query(f"SET {key} = {quoted(query[key])}", "TabSeparated")
        parameters = {
            k.removeprefix("param_"): v for k, v in query.items() if k.startswith("param_")
        }
        insert = INSERT.match(statement)
        if insert and data:
            with tempfile.NamedTemporaryFile(suffix=".block") as file:
                file.write(data)
                file.flush()
                sql = f"INSERT INTO {insert[1]} FROM INFILE {quoted(file.name)} FORMAT {insert[2]}"
                result = connection.query(sql, "TabSeparated")
            return self.response(b"", result, "")
        named = FORMAT.search(statement)
        fmt = named[1] if named else query.get("default_format", "TabSeparated")
        result = connection.query(statement, fmt, params=parameters)
        return self.response(bytes(result.bytes() or b""), result, fmt)

    def response(self, content: bytes, result: Any, fmt: str) -> web.Response:
        summary = {
            "read_rows": str(result.rows_read()),
            "read_bytes": str(result.bytes_read()),
            "written_rows": str(result.rows_read()),
        }
        headers = {"X-ClickHouse-Timezone": "UTC", "X-ClickHouse-Summary": json.dumps(summary)}
        if fmt and content:
            headers["X-ClickHouse-Format"] = fmt
        return web.Response(body=content, headers=headers)


def decompressed(body: bytes, encoding: str) -> bytes:
    match encoding:
        case "":
            return body
        case "gzip":
            return gzip.decompress(body)
        case "deflate":
            return zlib.decompress(body)
        case "lz4":
            return bytes(lz4.frame.decompress(body))
        case "zstd":
            return zstd.decompress(body)
    raise web.HTTPUnsupportedMediaType(text=encoding)


async def serve(folder: Path, port: int) -> None:
    front = Front(folder)
    app = web.Application(client_max_size=1024**3)
    app.router.add_post("/away", front.away)
    app.router.add_route("*", "/", front.handle)
    app.router.add_get("/ping", lambda _: web.Response(text="Ok.\n"))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    assert site._server is not None
    print("listening on", site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
