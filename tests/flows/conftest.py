"""Whole deployments in this process, one after the other: chDB admits one directory a process at a time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.places import Place
from tests.flows.scenes import Scene, make_scene


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    thresholds = gc.get_threshold()
    yield Place(tmp_path)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="package")
def scene() -> Scene:
    """Files that grow, and the oracle's tables of the whole."""
    return make_scene()
