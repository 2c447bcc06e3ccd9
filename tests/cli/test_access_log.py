"""A web server's log from end to end: converted, counted by the sample catalog `web`, and asked for."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random

from tests.cli.access_logs import counted, expected
from tests.cli.command import Inside

ADDRESSES = [*(f"192.0.2.{number}" for number in range(8)), "2001:db8::1", "host.example"]
REQUESTS = [
    "GET / HTTP/1.1", "GET /a?b=c HTTP/1.1", "POST /é HTTP/2.0", "HEAD /x HTTP/1.0", "OPTIONS * HTTP/1.1",
    "GET /a b HTTP/1.1", "-", "",
]  # fmt: skip
ZONES = ["+0000", "+0000", "+0200", "-0930"]


def written(path: Path, count: int) -> list[str]:
    """A log over some days and zones, a line of it twice; slightly out of order, as servers write them."""
    random = Random(7)
    lines = []
    for number in range(count):
        second = number * 700 + random.randrange(2000)
        day, clock = 28 + second // 86400, second % 86400
        month, day = ("May", day - 30) if day > 30 else ("Apr", day)
        time = f"{day:02}/{month}/2025:{clock // 3600:02}:{clock // 60 % 60:02}:{clock % 60:02} {random.choice(ZONES)}"
        size = random.choice(["-", "0", "512", str(random.randrange(10**6)), str(random.randrange(10**8))])
        status = random.choice([200, 200, 200, 206, 301, 304, 404, 500])
        end = random.choice(["", ' "-" "curl/8.0"', ' "http://e/\\"x" "Mozilla/5.0 (a; b) \\"c\\""'])
        lines.append(f'{random.choice(ADDRESSES)} - ann [{time}] "{random.choice(REQUESTS)}" {status} {size}{end}')
    lines.insert(5, lines[3])
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return lines


def test_the_tables_add_up_to_the_log(inside: Inside, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    lines = written(log, 900)
    converted, run, found = counted(inside, log)
    assert converted.err == f"{log}: 901 lines, 901 events, 0 lines that do not parse\n"
    assert "balance: 901 events in = 901 accepted + 0 rejected" in run.out
    want = expected(lines)
    assert found == want
    assert len({day for _, day, _ in want.egress}) > 6 and any(want.cost.values())

    # The log was packed and grew; the lines that were counted are the same events.
    more = [*lines, '192.0.2.1 - - [09/May/2025:10:00:00 +0000] "GET / HTTP/1.1" 200 77']
    (tmp_path / "later").mkdir()
    packed = tmp_path / "later" / "access.log.gz"
    packed.write_bytes(gzip.compress("".join(line + "\n" for line in more).encode()))
    _, run, found = counted(inside, packed)
    assert "balance: 902 events in = 902 accepted + 0 rejected" in run.out
    assert "this run: 1 events read" in run.err
    assert found == expected(more)


def test_what_is_wrong_in_a_log_is_reported(inside: Inside, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    good = written(log, 9)
    with log.open("a") as file:
        file.write("Internal error\n")
        file.write('192.0.2.1 - - [01/May/2025:10:00:00 +0000] "GET / HTTP/1.1" 200 99999999999999999999\n')
        file.write('192.0.2.1 - - [01/May/2025:10:00:00 +0000] "GET / HTTP/1.1" 999 5\n')
    converted, run, found = counted(inside, log)
    number = len(good) + 1
    assert converted.err.splitlines()[0] == f"{log}:{number}: not a line of an access log"
    assert (tmp_path / "rejected.log").read_text() == f"{log}:{number}: Internal error\n"
    assert "balance: 12 events in = 10 accepted + 2 rejected" in run.out
    assert "rejected: schema_violation │" in run.out
    assert found == expected(good)
