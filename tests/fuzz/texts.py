"""Texts that people and programs write for us: catalogs, key files, times, signals, SQL."""

from __future__ import annotations

from contextlib import suppress

from tallyflow.signals import read_signal

from api.keys import read_keys
from config.catalog import CatalogError, load_catalog
from domain.decode import BatchDecoder
from domain.instants import INVALID, parse, parse_many
from domain.ports import TallyError
from engines.statements import parse_statement
from tests.batches import history, payload, raw
from tests.oracle.events import instant_us


def catalog(data: bytes) -> None:
    """A catalog, or every fault of it; a catalog can be decoded by."""
    text = data.decode("utf-8", "replace")
    try:
        load_catalog(text)
    except CatalogError:
        return
    BatchDecoder(history(text)).decode(raw([payload()]))


def keys(data: bytes) -> None:
    """API keys, or what is wrong with their file."""
    with suppress(TallyError):
        read_keys(data.decode("utf-8", "replace"), "the file")


def instants(data: bytes) -> None:
    """Lines as times, one by one and together, as the oracle reads them."""
    texts = data.decode("utf-8", "replace").split("\n")
    expected = [instant_us(text) for text in texts]
    assert [parse(text) for text in texts] == expected
    assert parse_many(texts).tolist() == [INVALID if us is None else us for us in expected]


def signal(data: bytes) -> None:
    """What a product's service receives: a signal, or a ValueError."""
    with suppress(ValueError):
        read_signal(data)


def statement(data: bytes) -> None:
    """SQL as the ClickHouse front takes it apart: a statement and, of an insert, its data behind it."""
    found = parse_statement(data)
    assert data.startswith(found.text)
    assert found.data_start is None or len(found.text) <= found.data_start <= len(data)
