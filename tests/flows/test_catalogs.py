"""From when a new catalog holds."""

from __future__ import annotations

from typing import cast

from clickhouse_connect.driver.client import Client

from config.catalog import sample_text
from flows.catalogs import apply_catalog
from tests.fakes.clickhouse import ClickHouseServer


def test_a_new_catalog_holds_behind_all_that_a_killed_run_may_have_seen() -> None:
    """It wrote less than it had read, and told products of what it had read."""
    client = cast(Client, ClickHouseServer().client())
    text = sample_text("api")
    assert apply_catalog(client, text, lambda: 7_000_000).history.versions[-1].effective_from_us == 0
    newer = f"{text}# another text\n"
    assert apply_catalog(client, newer, lambda: 7_000_000).history.versions[-1].effective_from_us == 7_000_001
    again = apply_catalog(client, newer, lambda: 9_000_000)
    assert (again.added, again.history.versions[-1].effective_from_us) == (None, 7_000_001)
