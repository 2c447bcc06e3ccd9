from __future__ import annotations

import gzip
import io
import zlib
from email.message import Message
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import http_body
from engines.http_body import BadBody, Body, parse_form


def body(content: bytes, bytes_max: int = 10**7, **headers: str) -> Body:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    if "Transfer_Encoding" not in headers:
        message["Content-Length"] = str(len(content))
    return Body(io.BytesIO(content), message, bytes_max)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x;ext\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nTrailer: x\r\n\r\n"


def test_lengths_and_chunks() -> None:
    assert b"".join(body(b"abc").pieces()) == b"abc"
    one = body(chunked(b"ab", b"c" * 20) + b"next request", Transfer_Encoding="chunked")
    assert b"".join(one.pieces()) == b"ab" + b"c" * 20
    assert one.exhausted


@pytest.mark.parametrize("content", [b"", b"5\r\nab", b"zz\r\n", b"2\r\nabc\r\n0\r\n\r\n", b"-1\r\n"])
def test_broken_chunks(content: bytes) -> None:
    broken = body(content, Transfer_Encoding="chunked")
    with pytest.raises(BadBody):
        list(broken.pieces())
    broken.drain(10**6)
    assert not broken.exhausted


def test_a_body_that_is_cut_off() -> None:
    message = Message()
    message["Content-Length"] = "5"
    with pytest.raises(BadBody, match="cut off"):
        list(Body(io.BytesIO(b"abc"), message, 100).pieces())


def compressed(encoding: str, content: bytes) -> bytes:
    match encoding:
        case "gzip":
            return gzip.compress(content)
        case "deflate":
            return zlib.compress(content)
        case "lz4":
            return bytes(import_module("lz4.frame").compress(content))
        case _:
            return bytes(import_module("backports.zstd").compress(content))


ENCODINGS = ["gzip", "deflate", "lz4", "zstd"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(content=st.lists(st.binary(max_size=200), max_size=4), repeat=st.sampled_from([1, 20_000]))
def test_compressed_frames(encoding: str, content: list[bytes], repeat: int) -> None:
    frames = b"".join(compressed(encoding, part * repeat) for part in content)
    read = body(frames, 10**9, Content_Encoding=encoding)
    pieces = list(read.pieces())
    assert all(len(piece) <= http_body.PIECE_BYTES for piece in pieces)
    assert b"".join(pieces) == b"".join(part * repeat for part in content)
    assert read.exhausted


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_bomb_stops_at_the_bound(encoding: str) -> None:
    with pytest.raises(BadBody) as caught:
        list(body(compressed(encoding, b"\0" * 20_000_000), 10**6, Content_Encoding=encoding).pieces())
    assert caught.value.status == 413


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_broken_compression(encoding: str) -> None:
    whole = compressed(encoding, bytes(range(256)) * 10)
    for content in (whole[:-3], b"not compressed at all, really"):
        with pytest.raises(BadBody):
            list(body(content, Content_Encoding=encoding).pieces())


def test_unknown_encodings() -> None:
    with pytest.raises(BadBody, match="'br' is not supported"):
        list(body(b"", Content_Encoding="br").pieces())
    with pytest.raises(BadBody):
        list(body(b"", Transfer_Encoding="gzip").pieces())


def test_forms() -> None:
    form = (
        b'--B\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT\r\n 1\r\n'
        b'--B\r\nContent-Type: a/b\r\nContent-Disposition: form-data; name="param_x"\r\n\r\n\xc3\xa9\r\n--B--\r\n'
    )
    fields = parse_form(form, "multipart/form-data; boundary=B")
    assert fields == {"query": b"SELECT\r\n 1", "param_x": "é".encode()}
    with pytest.raises(BadBody, match="boundary"):
        parse_form(form, "multipart/form-data")
    with pytest.raises(BadBody, match="external data"):
        parse_form(form.replace(b'name="param_x"', b'name="t"; filename="t"'), "multipart/form-data; boundary=B")
