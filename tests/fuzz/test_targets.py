"""No input crashes or stalls the flow: inputs that once did, and some new ones in each run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, TARGETS, attempt

SEEDS = {name: sorted((CORPUS / name).iterdir()) for name in TARGETS}
EXAMPLES = 60


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    for path in SEEDS[name]:
        attempt(name, path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs(name: str) -> None:
    @settings(max_examples=EXAMPLES, derandomize=True, database=None)
    @given(damaged([path.read_bytes() for path in SEEDS[name]]))
    def run(data: bytes) -> None:
        attempt(name, data)

    run()


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """An input of the corpus with pieces cut out, put in or repeated; or any bytes."""
    data = draw(st.sampled_from([*seeds, b""]))
    for _ in range(draw(st.integers(1, 4))):
        low = draw(st.integers(0, len(data)))
        high = draw(st.integers(low, min(len(data), low + 20)))
        piece = draw(
            st.one_of(st.just(b""), st.binary(max_size=8), st.sampled_from(SCRAPS), st.just(data[low:high] * 9))
        )
        data = data[:low] + piece + data[high:]
    return data


SCRAPS = [
    b"\n", b"\r\n", b"\r\n\r\n", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\\ud800", b'"', b"'", b"{", b"]",
    b"[" * 99, b"}", b",", b":", b": ", b"&a ", b"*a", b"- ", b"!!", b"-", b"1e999999999", b"9" * 5000, b"0.1", b"null",
    b"%", b"$a$", b"/*", b"*/", b"`", b";", b"--", b"chunked", b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n", b"Content-Encoding: gzip\r\n", b"x" * 70_000, b"\x1f\x8b\x08",
]  # fmt: skip
