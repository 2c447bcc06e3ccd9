from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, StreamFailureError

from engines import front as front_module
from engines.clickhouse import EmbeddedClickHouse, connect
from engines.data_directory import DataDirectory
from engines.front import ClickHouseFront


def port(front: ClickHouseFront) -> int:
    record = front._directory.read("front")
    assert record is not None
    return int(record["port"])


@contextmanager
def client(front: ClickHouseFront, **options: object) -> Iterator[Client]:
    url = {"host": "127.0.0.1", "port": port(front), "username": "default", "password": front.password}
    with closing(clickhouse_connect.get_client(**(url | options))) as made:  # type: ignore[arg-type]
        yield made


def ask(
    front: ClickHouseFront,
    query: str | None = None,
    body: bytes | str | Iterator[bytes] | None = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
    password: str | None = None,
    **parameters: Any,
) -> tuple[int, bytes, dict[str, str]]:
    """One raw HTTP request: status, body, headers."""
    if query is not None:
        parameters["query"] = query
    word = base64.b64encode(f"default:{front.password if password is None else password}".encode()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", port(front), timeout=20)
    with closing(connection):
        target = "/?" + urlencode(parameters) if parameters else "/"
        method = method or ("GET" if body is None else "POST")
        content = body.encode() if isinstance(body, str) else body
        connection.request(method, target, content, {"Authorization": f"Basic {word}"} | (headers or {}))
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())


def code(answer: tuple[int, bytes, dict[str, str]]) -> tuple[int, str]:
    return answer[0], answer[2].get("X-ClickHouse-Exception-Code", "")


def test_like_curl(front: ClickHouseFront) -> None:
    assert ask(front, "SELECT 1")[:2] == (200, b"1\n")
    assert ask(front, body="SELECT 'é' AS `ü` FORMAT JSONEachRow")[1].decode() == '{"ü":"é"}\n'
    assert ask(front, "SELECT 'é", body="\x00'")[1] == b"\xc3\xa9\\n\\0\n"
    assert ask(front, "SELECT 1 AS x", default_format="CSVWithNames")[1] == b'"x"\n1\n'
    assert ask(front, "SELECT 1 AS x", headers={"X-ClickHouse-Format": "JSONEachRow"})[1] == b'{"x":1}\n'
    assert json.loads(ask(front, "SELECT 1 AS x FORMAT JSON")[1])["data"] == [{"x": 1}]
    assert ask(front, "SELECT getSetting('max_threads')", max_threads="3")[1] == b"3\n"
    assert (
        ask(front, "SELECT {x:Nullable(String)}, {y:String}", param_x="\\N", param_y="a\\tb'`")[1]
        == b"\\N\ta\\tb\\'`\n"
    )
    assert ask(front, "SELECT currentDatabase()", database="tallyflow")[1] == b"tallyflow\n"
    assert ask(front, "SELECT currentDatabase()", headers={"X-ClickHouse-Database": "system"})[1] == b"system\n"
    assert ask(front)[:2] == (200, b"Ok.\n")
    assert ask(front, "SELECT 1 FORMAT Null")[:2] == (200, b"")


def test_ping_needs_no_password_and_other_paths_are_not_there(front: ClickHouseFront) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port(front))) as connection:
        for path, status in (("/ping", 200), ("/play", 404), ("/ping", 200)):
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (status, True)


def test_credentials(front: ClickHouseFront) -> None:
    assert code(ask(front, "SELECT 1", password="wrong")) == (403, "516")
    assert code(ask(front, "SELECT 1", password="ünï")) == (403, "516")
    assert code(ask(front, body=b"x" * 300_000, password="")) == (403, "516")
    for headers in ({"Authorization": "Basic !"}, {"Authorization": ""}, {"Authorization": "Bearer x"}):
        assert code(ask(front, "SELECT 1", headers=headers)) == (403, "516")
    key = {"Authorization": "", "X-ClickHouse-User": "default", "X-ClickHouse-Key": front.password}
    assert ask(front, "SELECT 1", headers=key)[0] == 200
    assert code(ask(front, "SELECT 1", headers=key | {"X-ClickHouse-User": "admin"})) == (403, "516")
    assert code(ask(front, "SELECT 1", headers={"Authorization": ""}, user="default")) == (403, "516")
    with pytest.raises(DatabaseError) as caught, client(front, password="wrong"):
        pass
    assert caught.value.code == 516


def test_refusals(front: ClickHouseFront, table: str) -> None:
    assert code(ask(front, "SELECT nope")) == (404, "47")
    assert code(ask(front, body="SELEC 1")) == (400, "62")
    assert code(ask(front, body="SELECT 1; SELECT 2")) == (400, "62")
    assert code(ask(front, body=" -- nothing")) == (400, "62")
    assert code(ask(front, "SELECT * FROM tallyflow.nope")) == (404, "60")
    assert code(ask(front, "SELECT 1", database="no`pe")) == (404, "81")
    assert code(ask(front, "SELECT 1", no_such_setting="1")) == (404, "115")
    no_name: dict[str, Any] = {"a b": "1"}
    assert code(ask(front, "SELECT 1", **no_name)) == (404, "115")
    assert code(ask(front, body="SELECT 1 INTO OUTFILE '/tmp/x'")) == (400, "358")
    assert code(ask(front, "SELECT 1", compress="1")) == (501, "48")
    assert code(ask(front, f"INSERT INTO {table} FORMAT CSV", body=b"x", headers={"Content-Encoding": "br"})) == (
        400,
        "1000",
    )
    assert code(ask(front, body=b"SELECT 1 --" + b"x" * 5_000_000)) == (413, "62")
    assert code(ask(front, f"DROP TABLE {table}")) == (403, "164")  # by GET
    status, text, _ = ask(front, "SELECT 'é' + nope")
    assert status == 404 and "DB::Exception" in text.decode()


def test_inserts_in_every_way(front: ClickHouseFront, table: str) -> None:
    rows = '1,"a;\n\n""b",1.5\n2,é,0.000000000001\n'
    assert ask(front, f"INSERT INTO {table} FORMAT CSV", body=rows)[0] == 200
    assert ask(front, body=f"INSERT INTO {table} FORMAT CSV\n{rows}")[0] == 200
    zipped = {"Content-Encoding": "gzip"}
    assert ask(front, f"INSERT INTO {table} FORMAT CSV", body=gzip.compress(rows.encode()), headers=zipped)[0] == 200
    pieces = (b"3,%d,0\n" % number for number in range(100_000))
    status, _, headers = ask(front, f"INSERT INTO {table} FORMAT CSV", body=pieces)
    assert (status, json.loads(headers["X-ClickHouse-Summary"])["written_rows"]) == (200, "100000")
    assert ask(front, body=f"INSERT INTO {table} VALUES (4, 'a;b', 1), (4, '', 2)")[0] == 200
    assert ask(front, body=f"INSERT INTO {table} SELECT 5, 'x', 1")[0] == 200
    assert ask(front, "INSERT INTO {t:Identifier} FORMAT CSV", body="6,,0", database="tallyflow", param_t="t")[0] == 200
    counts = ask(front, f"SELECT x, count() FROM {table} GROUP BY x ORDER BY x FORMAT CSV")[1]
    assert counts == b"1,3\n2,3\n3,100000\n4,2\n5,1\n6,1\n"
    assert code(ask(front, f"INSERT INTO {table} FORMAT CSV", body="x,y\n" * 200_000)) == (400, "27")


def test_clickhouse_connect(front: ClickHouseFront, table: str) -> None:
    with client(front, database="tallyflow") as ch:
        assert ch.ping()
        rows = [[1, "é;\n\n\0'", Decimal("1.5")], [2, "b", Decimal("0.000000000001")]]
        assert ch.insert("t", rows, column_names=["x", "s", "d"]).written_rows == 2
        ch.insert_arrow("t", pa.table({"x": pa.array([5], pa.uint64()), "s": ["q"]}))
        assert ch.query("SELECT * FROM t WHERE x < 5 ORDER BY x").result_rows == [tuple(row) for row in rows]
        assert ch.query_arrow("SELECT x FROM t ORDER BY x").column("x").to_pylist() == [1, 2, 5]
        assert ch.raw_query("SELECT x FROM t ORDER BY x", fmt="CSV") == b"1\n2\n5\n"
        assert ch.command("SELECT count() FROM t") == 3
        assert ch.command("SELECT 1 WHERE 0") == ""
        ch.command("CREATE TEMPORARY TABLE z (x UInt8)")
        nasty = {"text": "it's \\ \t\n é `\"", "list": ["a'", "b\\"], "none": None, "number": 2**63}
        got = ch.query("SELECT {text:String}, {list:Array(String)}, {none:Nullable(String)}, {number:UInt64}", nasty)
        assert got.result_rows == [tuple(nasty.values())]
        long = {"list": ["x" * 100] * 1000}  # clickhouse-connect sends long ones as a form
        assert ch.query("SELECT length({list:Array(String)})", long).result_rows == [(1000,)]
        assert ch.query("SELECT getSetting('max_threads')", settings={"max_threads": 2}).result_rows == [(2,)]
        assert ch.query("SELECT * FROM t LIMIT 0").column_names == ("x", "s", "d")
        with ch.query_row_block_stream("SELECT number FROM numbers(300000)") as blocks:
            assert sum(len(block) for block in blocks) == 300_000


def test_a_failure_on_the_way_is_an_error(front: ClickHouseFront) -> None:
    query = "SELECT throwIf(number = 150000, 'späte') FROM numbers(200000) SETTINGS max_block_size = 1000"
    with client(front) as ch, pytest.raises(StreamFailureError, match="späte"):
        _ = ch.query(query).result_rows
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(front, query)
    assert b"__exception__" in caught.value.partial
    assert ask(front, "SELECT 1")[0] == 200


def test_read_only(engine: EmbeddedClickHouse, held_directory: DataDirectory, table: str) -> None:
    with ClickHouseFront(engine, held_directory) as front:
        assert ask(front, body=f"SELECT count() FROM {table}", max_threads="1")[:2] == (200, b"0\n")
        assert ask(front, body="SHOW TABLES FROM tallyflow")[1] == b"t\n"
        for sql in (
            f"INSERT INTO {table} (x) VALUES (1)",
            f"INSERT INTO {table} FORMAT CSV\n1,2,3",
            "INSERT INTO FUNCTION file('/tmp/tally-must-not-be.csv') SELECT 1",
            "WITH 1 AS x INSERT INTO FUNCTION file('/tmp/tally-must-not-be.csv') SELECT x",
            f"/* SELECT */ DROP TABLE {table}",
            f"ALTER TABLE {table} DELETE WHERE 1",
            "CREATE TEMPORARY TABLE z (x UInt8)",
            "SET readonly = 0",
            "SELECT 1 SETTINGS readonly = 0",
        ):
            assert code(ask(front, body=sql)) == (403, "164"), sql
        assert code(ask(front, body="SELECT 1", readonly="0")) == (403, "164")
        assert ask(front, body="SELECT 1", readonly="1")[0] == 200
        with client(front, settings={"readonly": "2"}) as ch:
            assert ch.command(f"SELECT count() FROM {table}") == 0


def test_a_reader_beside_a_writer(front: ClickHouseFront, engine: EmbeddedClickHouse, table: str) -> None:
    """Every count seen is a multiple of the block, never falls, and arrives at the end."""
    blocks, block_rows = 30, 1000

    def write() -> None:
        with closing(engine.client()) as writer:
            for start in range(0, blocks * block_rows, block_rows):
                rows = pa.table({"x": pa.array(range(start, start + block_rows), pa.uint64())})
                writer.insert_arrow(table, rows)

    thread = threading.Thread(target=write)
    seen: list[int] = []
    with client(front) as reader:
        thread.start()
        while thread.is_alive():
            seen.append(int(reader.command(f"SELECT count() FROM {table}")))  # type: ignore[arg-type]
        thread.join()
        assert reader.command(f"SELECT uniqExact(x) FROM {table}") == blocks * block_rows
    assert seen == sorted(seen) and all(count % block_rows == 0 for count in seen)


def test_sessions_do_not_leak_into_each_other(front: ClickHouseFront) -> None:
    assert ask(front, body="SET max_threads = 7")[0] == 200
    assert ask(front, "SELECT getSetting('max_threads')")[1] != b"7\n"
    failures: list[object] = []

    def use(name: str) -> None:
        for _ in range(10):
            answer = ask(front, "SELECT currentDatabase(), {x:String}", database=name, param_x=name)
            if answer[1] != f"{name}\t{name}\n".encode():
                failures.append(answer)

    threads = [threading.Thread(target=use, args=(name,)) for name in ("default", "system", "tallyflow") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_too_many_queries_and_connections(
    engine: EmbeddedClickHouse, held_directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "QUERY_WAIT_SECONDS_MAX", 0.05)
    monkeypatch.setattr(front_module, "CONNECTIONS_MAX", 2)
    with ClickHouseFront(engine, held_directory, queries_max=1) as front:
        with front.turns:
            assert code(ask(front, "SELECT 1")) == (503, "202")
        assert ask(front, "SELECT 1")[0] == 200
        idle = []
        deadline = time.monotonic() + 5
        while (status := ask(front, "SELECT 1")[0]) != 503 and time.monotonic() < deadline:
            idle.append(socket.create_connection(("127.0.0.1", port(front))))
            time.sleep(0.05)
        assert status == 503
        for connection in idle:
            connection.close()


def test_a_client_that_goes_away_harms_nobody(front: ClickHouseFront) -> None:
    word = base64.b64encode(f"default:{front.password}".encode())
    with socket.create_connection(("127.0.0.1", port(front))) as raw:
        query = b"SELECT+repeat('x',1000)+FROM+numbers(1000000)"
        raw.sendall(b"GET /?query=" + query + b" HTTP/1.1\r\nAuthorization: Basic " + word + b"\r\n\r\n")
        raw.recv(1000)
    for _ in range(3):
        assert ask(front, "SELECT 1")[0] == 200
    with socket.create_connection(("127.0.0.1", port(front))) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\nAuthorization: Basic " + word + b"\r\n\r\nSELECT")
    assert ask(front, "SELECT 1")[0] == 200


def test_the_record_and_its_end(engine: EmbeddedClickHouse, held_directory: DataDirectory) -> None:
    front = ClickHouseFront(engine, held_directory)
    url = front.start()
    path = held_directory.path / "front.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    record = json.loads(path.read_text())
    assert url == f"http://default:{record['password']}@127.0.0.1:{record['port']}"
    with closing(connect(url)) as ch:
        assert ch.command("SELECT 1") == 1
        began = time.monotonic()
        front.close()
        front.close()
        assert time.monotonic() - began < 2, "an idle connection does not hold it up"
        assert not path.exists()
        with pytest.raises(OperationalError):
            ch.command("SELECT 1")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", record["port"]))


def test_closing_ends_a_running_query(
    engine: EmbeddedClickHouse, held_directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "CLOSE_SECONDS_MAX", 0.5)
    front = ClickHouseFront(engine, held_directory)
    front.start()
    answers: list[tuple[int, str]] = []
    query = "SELECT count() FROM numbers(1000000000000) WHERE cityHash64(number) = 1 FORMAT JSON"
    thread = threading.Thread(target=lambda: answers.append(code(ask(front, query))))
    thread.start()
    time.sleep(0.3)
    front.close()
    thread.join(10)
    assert answers == [(500, "394")]
