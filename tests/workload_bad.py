"""What producers get wrong: whole lines, elements of batches, and single attributes of an event.

Some of these are right after all, at the very edge of what is accepted. None of this says which:
the oracle and the product each have to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator


def _nested(depth: int) -> bytes:
    return b'{"deep":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


LINES = (
    b"", b"   ", b"\t\r", b"\x0b", b"\xc2\xa0", b"null", b" null ", b"[]", b" [ \t] ", b"42", b"-0", b'"text"', b"true",
    b"{}", b"[[]]", b"[null]", b"[[1],[2]]", b"-", b"{", b"}", b"[", b"]", b'"', b"nul", b"True", b"NaN", b"-Infinity",
    b"01", b"+1", b"1.", b".5", b"1e", b"0x10", b'{"a":1,}', b'{"a" 1}', b"{'a':1}", b"{a:1}", b'{"a":1}{"b":2}',
    b'{"a":NaN}', b'{"a":Infinity}', b'{"a":"\x01"}', b'{"a":"tab\tinside"}', b'{"a":"\\x41"}', b'{"a":"\\u12g4"}',
    b'{"a":"\\ud800"}', b'{"\\udc00":1}', b'{"a":"\\ud800\\u0041"}', b'{"a":"\\udc00\\ud800"}', b'{"a":"\\\\ud800"}',
    b'{"a":"\xed\xa0\x80"}', b'{"a":"\xff"}', b'{"a":"\xc0\xaf"}', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"// no",
    b'{"a":1} x', b'{"a":1}\x00', b"\x00", b"[" * 300 + b"]" * 300, b"[" * 40, _nested(300), _nested(600),
)  # fmt: skip
"""Lines that are no event whatever the catalog says."""

ELEMENTS = (
    b"1", b"null", b"[]", b"{}", b'"x"', b"[1]", b"[null,{}]", b"-1.5e3", b'{"specversion":"1.0"}', _nested(300),
    _nested(600), b'{"a":"\\ud800"}', b'{"a":"],[\\"}{"}', b'{"specversion":"1.0","id":"e","source":"s",'
    b'"type":"no.such.type","subject":"x","time":"2026-03-01T00:00:00Z","data":{}}',
)  # fmt: skip
"""Elements that are JSON by their grammar, so that their neighbours can be read."""

ATTRIBUTES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("specversion", (None, '"0.3"', "1.0", "null", '"1.0 "', '"\\u0031.0"')),
    ("id", (None, '""', "12", "null", "{}", '" "', '"\\u0000"', '"{\\"a\\":1}"', '"\\ud83d\\ude00"', '"\\ud83d"')),
    ("source", (None, '""', "7", "null", "[]")),
    ("type", (None, '""', "null", '"no.such.type"', '"API.REQUEST"', '"api.request "')),
    ("subject", (None, '""', "true", "null")),
    ("logtime", ("null", '""', '"yesterday"', "0", '"1999-01-01T00:00:00Z"', '"2101-01-01T00:00:00Z"')),
    (
        "time",
        (
            None, "null", '""', "1772359200", '"1999-12-31T23:59:59.999999Z"', '"2000-01-01T00:30:00+01:00"',
            '"1999-12-31T23:30:00-01:00"', '"2000-01-01T00:00:00Z"', '"2101-01-01T00:00:00Z"',
            '"2100-12-31T23:59:59.9999999999Z"', '"2101-01-01T00:59:59+01:00"', '"2026-03-01T10:00:60Z"',
            '"2026-02-29T00:00:00Z"', '"2028-02-29T00:00:00Z"', '"2100-02-29T00:00:00Z"', '"2026-04-31T00:00:00Z"',
            '"2026-00-10T00:00:00Z"', '"2026-13-10T00:00:00Z"', '"0000-01-01T00:00:00Z"', '"2026-03-01 10:00:00Z"',
            '"2026-03-01T10:00:00"', '"2026-03-01T10:00Z"', '"2026-03-01"', '"2026-03-01T24:00:00Z"',
            '"2026-03-01T10:60:00Z"', '"2026-03-01T10:00:00.Z"', '"2026-03-01T10:00:00,5Z"',
            '"2026-03-01T10:00:00+24:00"', '"2026-03-01T10:00:00+01:60"', '"2026-03-01T10:00:00+0100"',
            '"2026-03-01T10:00:00+01"', '"2026-03-01T10:00:00+23:59"', '"2026-03-01T10:00:00-23:59"',
            '"2026-03-01t10:00:00z"', '" 2026-03-01T10:00:00Z"', '"2026-03-01T10:00:00Z\\n"',
            '"\\u0662026-03-01T10:00:00Z"', '"\\uff12026-03-01T10:00:00Z"', '"2026-03-01T10:00:00.123456789Z"',
            '"2026-03-01T10:00:00.1Z"', '"20260301T100000Z"', '"2026-W09-7T10:00:00Z"', '"+2026-03-01T10:00:00Z"',
            '"2026-3-1T10:00:00Z"', '"2026-03-01T10:00:00 Z"', '"2026-03-01T10:00:00UTC"',
            '"2026-03-01T10:00:00.' + "0" * 400 + '1Z"',
        ),
    ),
    ("data", (None, "null", "[]", '"x"', "{}", "1", "true", '[{"bytes":1,"region":"r"}]')),
)  # fmt: skip
"""Attributes of an event, and JSON texts that take their place (None: absent)."""

DATA: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "api.request",
        (
            '{"bytes":1.0,"region":"r"}', '{"bytes":1e3,"region":"r"}', '{"bytes":"12","region":"r"}',
            '{"bytes":-1,"region":"r"}', '{"bytes":-0,"region":"r"}', '{"bytes":true,"region":"r"}',
            '{"bytes":null,"region":"r"}', '{"bytes":[],"region":"r"}', '{"region":"r"}', '{"bytes":5}',
            '{"bytes":999999999999999,"region":"r"}', '{"bytes":1000000000000000,"region":"r"}',
            '{"bytes":9223372036854775808,"region":"r"}', '{"bytes":' + "9" * 5000 + ',"region":"r"}',
            '{"bytes":1,"region":5}', '{"bytes":1,"region":null}', '{"bytes":1,"region":"\\u0000"}',
            '{"bytes":1,"bytes":2,"region":"last key wins"}', '{"bytes":"x","bytes":3,"region":"last key wins"}',
            '{"bytes":4,"bytes":"x","region":"r"}', '{"bytes":1,"region":"r","note":5}',
            '{"bytes":1,"region":"r","note":null}', '{"bytes":1,"region":"r","status":null}',
            '{"bytes":1,"region":"r","status":99}', '{"bytes":1,"region":"r","status":600}',
            '{"bytes":1,"region":"r","status":100}', '{"bytes":1,"region":"r","status":599}',
            '{"bytes":1,"region":"r","method":""}', '{"bytes":1,"region":"r","cached":"true"}',
            '{"bytes":1,"region":"r","cached":1}', '{"bytes":1,"region":"r","tags":[1]}',
            '{"bytes":1,"region":"r","tags":"x"}', '{"bytes":1,"region":"r","tags":{}}',
            '{"bytes":1,"region":"r","client":"linux"}', '{"bytes":1,"region":"r","client":{"os":5}}',
            '{"bytes":1,"region":"r","client":{}}', '{"bytes":1,"region":"r","client":{"app":null}}',
            '{"bytes":1,"region":"r","client":{"app":{"version":"9","extra":{"NaN":[1e999]}}}}',
            '{"bytes":1,"region":"r","extra":1e999}', '{"bytes":1,"region":"r","extra":NaN}',
            '{"bytes":1,"region":"r","extra":-Infinity}', '{"bytes":1,"region":"r","extra":"\\ud800"}',
            '{"bytes":1,"region":"r","\\udfff":0}', '{"bytes":1,"region":"r","\\ud83d\\ude00":"\\ud83d\\ude00"}',
            '{"bytes":1,"region":"r","extra":"\\udead","extra":1}', '{"bytes":1,"region":"r","extra":01}',
            '{"bytes":1,"region":"r","extra":' + "[" * 300 + "]" * 300 + "}",
            '{"bytes":1,"region":"r","extra":' + "[" * 600 + "]" * 600 + "}",
            '{"bytes":1,"region":"r","extra":' + '{"a":' * 600 + "0" + "}" * 600 + "}",
            '{"bytes":1,"region":"r","extra":"' + "[{" * 600 + '"}',
            '{"bytes":1,"region":"r","extra":"' + "x" * 1_500_000 + '"}',
            *('{"bytes":1,"region":"r","cost":' + cost + "}" for cost in (
                "NaN", "Infinity", "1e999", "-1e999", "1e15", "1e14", "-1e15", "1e-12", "1e-13", "0.1234567890123",
                "0.1234567890120", "0." + "0" * 300 + "1", "1." + "0" * 300, "999999999999999.999999999999",
                "-999999999999999.999999999999", "1000000000000000", "1000000000000000.0", "-0.0", "0e5", "0.0e-400",
                '"0.1"', "null", "true", "1.50", "15e-1", "0.15E+1", "1" + "0" * 400, "100000000000000000e-3", "1.",
                ".1", "1e", "--1", "0x1", "1_000",
            )),
        ),
    ),
    (
        "compute.run",
        (
            '{"seconds":1,"machine":"m1"}', '{"seconds":1,"machine":"m1","extra":1}',
            '{"seconds":-1e-12,"machine":"m1"}',
            '{"seconds":0,"machine":"m1"}', '{"seconds":1000000,"machine":"m1"}',
            '{"seconds":1000000.000000000001,"machine":"m1"}', '{"seconds":1,"machine":"A1"}',
            '{"seconds":1,"machine":"abcd1"}', '{"seconds":1,"machine":"m1 "}', '{"seconds":1,"machine":"m"}',
            '{"seconds":1,"machine":"m1","zone":"d"}', '{"seconds":1,"machine":"m1","zone":""}',
            '{"seconds":1,"machine":"m1","started":"2026-03-01"}', '{"seconds":1,"machine":"m1","started":7}',
            '{"seconds":1,"machine":"m1","started":"2026-03-01T10:00:00.5+05:45"}',
            '{"seconds":1,"machine":"m1","credits":1000}', '{"seconds":1,"machine":"m1","credits":-1000}',
            '{"seconds":1,"machine":"m1","credits":999.999999999999}', '{"seconds":1,"machine":"m1","credits":1e3}',
            '{"seconds":1,"machine":"m1","credits":-999.999999999999}', '{"seconds":1,"machine":"m1","priority":4}',
            '{"seconds":1,"machine":"m1","priority":"1"}', '{"seconds":1,"machine":"m1","priority":1.0}',
        ),
    ),
    (
        "storage.sample",
        (
            "{}", '{"gigabytes":"1"}', '{"gigabytes":-0.5}', '{"gigabytes":1,"bucket":""}',
            '{"gigabytes":1,"bucket":"thirteen long"}', '{"gigabytes":1,"bucket":"' + "🙂" * 12 + '"}',
            '{"gigabytes":1,"bucket":"' + "🙂" * 13 + '"}', '{"gigabytes":1,"level":null}',
            '{"gigabytes":1,"level":100}',
            '{"gigabytes":1,"level":101}', '{"gigabytes":1,"level":-101}', '{"gigabytes":1,"level":1.5}',
        ),
    ),
    ("user.login", ("{}", '{"user":null}', '{"user":""}', '{"user":"u","device":1e0}', '{"user":"u","trusted":0}')),
    (
        "tallyflow.subscription",
        (
            "{}", "[]", '{"action":"pause"}', '{"action":1}', '{"action":"create"}',
            '{"action":"create","plan":"none"}', '{"action":"create","plan":7}', '{"action":"create","plan":null}',
            '{"action":"create","plan":"pro","x":1}', '{"action":"change"}', '{"action":"change","plan":"Pro"}',
            '{"action":"end","plan":"pro"}', '{"action":"change","plan":"pro","start":"2026-03-01"}',
            '{"action":"end","timezone":"Europe/Berlin"}', '{"action":"end","end":null}', '{"action":"end","end":""}',
            '{"action":"end","end":"2026-2-1"}', '{"action":"end","end":"2026-02-29"}',
            '{"action":"end","end":"20260301"}', '{"action":"end","end":"2026-W09-7"}',
            '{"action":"end","end":"2026-03-01T00:00:00Z"}', '{"action":"end","end":" 2026-03-01"}',
            '{"action":"end","end":"2026-03-01\\n"}', '{"action":"end","end":"\\u0662026-03-01"}',
            '{"action":"end","end":"2101-01-01"}', '{"action":"end","end":"2100-12-31"}',
            '{"action":"create","plan":"bare","start":"1999-12-31"}',
            '{"action":"create","plan":"bare","start":"0026-01-01"}',
            '{"action":"create","plan":"bare","start":"2026-03-02","end":"2026-03-02"}',
            '{"action":"create","plan":"bare","start":"2026-03-02","end":"2026-03-01"}',
            '{"action":"create","plan":"bare","start":"2000-01-01","end":"2000-01-02"}',
            '{"action":"create","plan":"bare","timezone":""}',
            '{"action":"create","plan":"bare","timezone":"Mars/Base"}',
            '{"action":"create","plan":"bare","timezone":"europe/berlin"}',
            '{"action":"create","plan":"bare","timezone":"../UTC"}',
            '{"action":"end","action":"change","plan":"starter"}', '{"action":"end"}',
        ),
    ),
    ("heartbeat", ("{}", "[]", '{"beat":null}', '{"beat":""}', '{"beat":7,"x":{"beat":"no"}}')),
)  # fmt: skip
"""By event type, `data` at and beyond the edge of its schema."""

Good = Callable[[dict[str, str | None]], bytes]
"""Makes a fresh good event with some attributes' JSON texts replaced or left out (None)."""
Recipe = Callable[[Good], bytes]

DISGUISES: tuple[Recipe, ...] = (
    lambda good: good({"time": None, "logtime": '"2026-03-05T00:00:00Z"'}),
    lambda good: good({"time": '"2026-03-05T00:00:00Z"', "logtime": '"2026-03-04T23:55:00Z"'}),
    lambda good: good({"time": '"2026-03-05T00:00:00.000001Z"', "logtime": '"2026-03-04T23:55:00Z"'}),
    lambda good: good({"time": '"2026-03-05T00:00:00Z"', "logtime": '"2026-04-09T00:00:00Z"'}),
    lambda good: good({"time": '"2026-03-05T00:00:00Z"', "logtime": '"2026-04-09T00:00:00.000001Z"'}),
    lambda good: good({}) + b"\r",
    lambda good: b" \t" + good({}) + b" ",
    lambda good: b"\xef\xbb\xbf" + good({}),
    lambda good: good({}) + b"x",
    lambda good: good({}) + b"," + good({}),
    lambda good: good({})[:-1],
    lambda good: good({"id": '"%"'}).replace(b"%", b"\xff"),
    lambda good: good({"id": '"%"'}).replace(b"%", b"a\x02"),
    lambda good: good({"id": '"first","id":"last of repeated keys"'}),
    lambda good: good({"extension": "1e999", "data_base64": '"AA=="'}),
)
"""Good events with something around them, inside them or about their times."""


def _changed(changes: dict[str, str | None]) -> Recipe:
    return lambda good: good(changes)


def _as_is(line: bytes) -> Recipe:
    return lambda _: line


def recipes() -> Iterator[Recipe]:
    """Every bad line, still to be made."""
    for line in LINES:
        yield _as_is(line)
    for attribute, replacements in ATTRIBUTES:
        for replacement in replacements:
            yield _changed({attribute: replacement})
    for type_, data in DATA:
        for text in data:
            yield _changed({"type": f'"{type_}"', "data": text})
    yield from DISGUISES
