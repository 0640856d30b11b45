"""SQL for administrators: exact, bounded, and without a way out of the tables."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from marketprism.history.v1 import history_service_pb2 as pb

from services.shared.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MarketPrismError,
    PermissionDenied,
    ResourceExhausted,
)
from services.storage.engine import Engine
from services.storage.settings import EngineSettings
from services.storage.sql import SqlCalls
from services.storage.sql_settings import SqlSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a secret of this machine"


class Call:
    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sql")
    (made / "secret.txt").write_text(SECRET + "\n")
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[Engine]:
    made = Engine(EngineSettings(readers=1), folder / "store")
    await made.open()
    try:
        await made.command(
            "CREATE TABLE t (n UInt64, price Decimal(38, 18), word Nullable(String)) "
            "ENGINE = MergeTree ORDER BY n"
        )
        await made.command(
            "INSERT INTO t SELECT number, toDecimal128('1.000000000000000001', 18) + number, "
            "if(number = 1, NULL, 'it''s \"odd\"\\n\\t') FROM numbers(1000)"
        )
        yield made
    finally:
        await made.close()


async def ask(engine: Engine, sql: str, settings: SqlSettings | None = None, **fields: Any) -> Any:
    calls = SqlCalls(engine, settings or SqlSettings(enabled=True))
    context: Any = Call()
    return await calls.RunQuery(pb.RunQueryRequest(sql=sql, **fields), context)


def cells(answer: Any) -> list[list[str | None]]:
    return [
        [None if v.WhichOneof("kind") == "null_value" else v.string_value for v in row.values]
        for row in answer.rows
    ]


async def test_values_are_their_exact_text(engine: Engine) -> None:
    answer = await ask(
        engine,
        "SELECT n, price, word, toUInt64(18446744073709551615) AS big, "
        "fromUnixTimestamp64Nano(toInt64(1), 'UTC') AS t FROM t ORDER BY n LIMIT 2",
    )
    assert [each.name for each in answer.columns] == ["n", "price", "word", "big", "t"]
    assert answer.columns[1].type == "Decimal(38, 18)"
    rest = ["18446744073709551615", "1970-01-01 00:00:00.000000001"]
    assert cells(answer) == [
        ["0", "1.000000000000000001", 'it\'s "odd"\n\t', *rest],
        ["1", "2.000000000000000001", None, *rest],
    ]
    assert not answer.truncated
    assert answer.rows_read > 0
    assert answer.bytes_read > 0
    assert answer.elapsed.ToNanoseconds() > 0


async def test_more_rows_than_asked_for_are_cut_and_told(engine: Engine) -> None:
    answer = await ask(engine, "SELECT n FROM t ORDER BY n", max_rows=3)
    assert (cells(answer), answer.truncated) == ([["0"], ["1"], ["2"]], True)
    answer = await ask(engine, "SELECT n FROM t ORDER BY n LIMIT 3", max_rows=3)
    assert (len(answer.rows), answer.truncated) == (3, False)


async def test_parameters_are_values_and_nothing_else(engine: Engine) -> None:
    answer = await ask(
        engine,
        "SELECT {word:String} AS word, {n:UInt8} + 1",
        parameters={"word": "'; DROP TABLE t; --", "n": "4"},
    )
    assert cells(answer) == [["'; DROP TABLE t; --", "5"]]


@pytest.mark.parametrize(
    "sql",
    [
        "SHOW TABLES",
        "SHOW CREATE TABLE t",
        "DESCRIBE t",
        "EXPLAIN SELECT n FROM t",
        "WITH 1 AS x SELECT x;",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "SELECT 1 -- ; DROP TABLE t\n",
        "SELECT /* ; */ 1 # ;",
        "SELECT ';', '--', '/*', '$$', 'naïve \u201cquotes\u201d'",
        "SELECT 0.5 + 1e-5 >= 1 OR (1, 2).1 != 2, arrayMap(x -> x || 'a', ['b']), '1'::UInt8",
        "SELECT name FROM system.tables",
        "SELECT sum(number) FROM numbers(10)",
        'SELECT count() AS `a name`, "n" FROM t GROUP BY n',
    ],
)
async def test_reading_is_allowed(engine: Engine, sql: str) -> None:
    await ask(engine, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t (n) VALUES (1)",
        "DROP TABLE t",
        "ALTER TABLE t DELETE WHERE 1",
        "CREATE TABLE x (a Int8) ENGINE = Memory",
        "CREATE TEMPORARY TABLE x (a Int8)",
        "TRUNCATE TABLE t",
        "SET max_memory_usage = 0",
        "USE system",
        "KILL QUERY WHERE 1",
        "SYSTEM SHUTDOWN",
        "ATTACH TABLE x",
        "WITH 1 AS x INSERT INTO t SELECT x, x, ''",
        "EXPLAIN INSERT INTO t SELECT 1, 1, ''",
        "SELECT 1; DROP TABLE t",
        "SELECT 1; SELECT 2",
        "SELECT 1 /*;*/; SELECT 2",
        "SELECT 1 INTO OUTFILE '{folder}/out.txt'",
        "SELECT 1 INTO/**/OUTFILE '{folder}/out.txt'",
        "SELECT 1 SETTINGS max_memory_usage = 123456789",
        "SELECT n FROM t SETTINGS limit = 100000000, readonly = 0",
        "SELECT file('{folder}/secret.txt')",
        "SELECT FILE /* */ ('{folder}/secret.txt')",
        "SELECT `file`('{folder}/secret.txt')",
        "SELECT `f\\x69le`('{folder}/secret.txt')",
        "SELECT arrayMap(file, ['{folder}/secret.txt'])",
        "SELECT * APPLY file FROM (SELECT '{folder}/secret.txt')",
        "SELECT $$'$$, file('{folder}/secret.txt'), $$'$$",
        "SELECT $a$'$a$, file('{folder}/secret.txt'), $a$'$a$",
        "SELECT \u2018'\u2019, file('{folder}/secret.txt'), \u2018'\u2019",
        "SELECT '\\'', file('{folder}/secret.txt')",
        "SELECT '''', file('{folder}/secret.txt'), ''''",
        "SELECT \"a'\", file('{folder}/secret.txt')",
        "SELECT 1 /* ' */, file('{folder}/secret.txt') /* ' */",
        "SELECT 1 // '\n, file('{folder}/secret.txt') // '",
        "SELECT * FROM file('{folder}/secret.txt', 'TSV', 'a String')",
        "SELECT * FROM `file`('{folder}/secret.txt', 'TSV', 'a String')",
        "DESCRIBE file('{folder}/secret.txt', LineAsString)",
        "DESCRIBE TABLE file('{folder}/secret.txt')",
        "SELECT * FROM default.`{folder}/secret.txt`",
        "DESCRIBE default.`{folder}/secret.txt`",
        "SHOW CREATE TABLE default.`{folder}/secret.txt`",
        "SELECT * FROM `{folder}/secret.txt`",
        "SELECT * FROM url('http://127.0.0.1:9/', 'TSV', 'a String')",
        "DESCRIBE url('http://127.0.0.1:9/', 'TSV')",
        "SELECT * FROM remote('127.0.0.1', 'system', 'one')",
        "SELECT * FROM s3('http://127.0.0.1:9/bucket/key')",
        "SELECT * FROM executable('x.sh', TSV, 'a String')",
        "SELECT * FROM mysql('127.0.0.1:9', 'a', 'b', 'c', 'd')",
        "SELECT * FROM postgresql('127.0.0.1:9', 'a', 'b', 'c', 'd')",
        "SELECT * FROM sqlite('{folder}/secret.txt', 'a')",
        "SELECT * FROM fileCluster('a', '{folder}/secret.txt')",
        "SELECT * FROM Python(engine)",
        "SELECT * FROM python(engine)",
        "SELECT * FROM merge('system', '.*')",
        "SELECT * FROM dictionary('x')",
        "SELECT * FROM filesystem('{folder}')",
        "SELECT * FROM system.users",
        "SELECT * FROM system . `processes`",
        "SELECT * FROM `system`.query_log",
        "SELECT * FROM SYSTEM.server_settings",
        "DESCRIBE system.users",
        "SELECT * FROM system.{t:Identifier}",
        "SELECT * FROM {d:Identifier}.users",
        "SHOW GRANTS",
        "SHOW PROCESSLIST",
        "SHOW USERS",
        "SHOW ACCESS",
        "",
        ";",
        "-- nothing",
        "SELECT 'not closed",
        "SELECT `not closed",
        "SELECT 1 /* not closed",
        "EXISTS t",
        "BACKUP TABLE t TO Disk('a', 'b')",
    ],
)
async def test_nothing_else_is(engine: Engine, folder: Path, sql: str) -> None:
    statement = sql.replace("{folder}", str(folder))
    fields: dict[str, Any] = {}
    if ":Identifier" in sql:
        fields["parameters"] = {"t": "users", "d": "system"}
    with pytest.raises(MarketPrismError) as caught:
        await ask(engine, statement, **fields)
    assert isinstance(caught.value, PermissionDenied | InvalidArgument), caught.value
    assert caught.value.metadata["field"] == "sql"
    assert SECRET not in caught.value.message
    assert not (folder / "out.txt").exists()
    assert await engine.query("SELECT count() FROM t") == [(1000,)]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT nothing FROM t", "sql"),
        ("SELECT 1 FORMAT JSON", "sql"),
        ("SELEC 1", None),
        ("SELECT {x:UInt8}", "sql"),
    ],
)
async def test_a_mistake_is_told_with_the_field(
    engine: Engine, sql: str, expected: str | None
) -> None:
    with pytest.raises(MarketPrismError) as caught:
        await ask(engine, sql)
    if expected is not None:
        assert isinstance(caught.value, InvalidArgument)
        assert [each.field for each in caught.value.violations] == [expected]


async def test_time_is_limited_by_the_database(engine: Engine) -> None:
    request = pb.RunQueryRequest()
    request.timeout.FromMilliseconds(100)
    settings = SqlSettings(enabled=True, max_rows_read=10**15)
    with pytest.raises(DeadlineExceeded) as caught:
        await ask(
            engine,
            "SELECT sum(number) FROM numbers(1000000000000)",
            settings,
            timeout=request.timeout,
        )
    assert caught.value.reason == "QUERY_TIMEOUT"


@pytest.mark.parametrize(
    ("sql", "settings"),
    [
        ("SELECT groupArray(number) FROM numbers(100000000)", {"max_memory_bytes": 64 * 1024**2}),
        ("SELECT count() FROM numbers(100000000)", {"max_rows_read": 1000}),
        ("SELECT repeat('x', 100000) FROM numbers(1000)", {"max_result_bytes": 1024**2}),
        ("SELECT number FROM numbers(100000) SETTINGS limit = 100000", {}),
    ],
)
async def test_memory_and_rows_are_limited(
    engine: Engine, sql: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(ResourceExhausted) as caught:
        await ask(engine, sql, SqlSettings(enabled=True, **settings))
    assert caught.value.reason == "QUERY_LIMIT_REACHED"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_rows": -1}, "max_rows"),
        ({"max_rows": 100_001}, "max_rows"),
        ({"parameters": {"a b": "1"}}, "parameters"),
        ({"parameters": {"a": "x" * 70_000}}, "parameters.a"),
        ({"sql": "SELECT '" + "x" * 70_000 + "'"}, "sql"),
    ],
)
async def test_bounds_of_the_request(engine: Engine, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await ask(engine, **{"sql": "SELECT 1", **fields})
    assert [each.field for each in caught.value.violations] == [named]


async def test_it_is_off_unless_it_is_switched_on(engine: Engine) -> None:
    with pytest.raises(PermissionDenied, match=r"sql\.enabled: true") as caught:
        await ask(engine, "SELECT 1", SqlSettings())
    assert caught.value.reason == "SQL_DISABLED"


async def test_every_statement_is_in_the_audit_log(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    await ask(engine, "SELECT 'asked' AS word")
    with contextlib.suppress(MarketPrismError):
        await ask(engine, "DROP TABLE dropped")
    told = capsys.readouterr().out
    assert "sql answered" in told
    assert "asked" in told
    assert "sql refused" in told
    assert "DROP TABLE dropped" in told
    assert "ipv4:127.0.0.1:1" in told
