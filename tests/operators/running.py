"""Running one operator in a real dataflow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.operators import Stream
from bytewax.testing import TestingSink, TestingSource, run_main

from tests.fakes.claims import FakeClaims
from tests.fakes.redis import RedisServer

X = TypeVar("X")
Y = TypeVar("Y")

ACCEPT_WITHIN_US = 35 * 86_400_000_000


def run(items: Iterable[X], operator: Callable[[Stream[X]], Stream[Y]], at_once: int = 1) -> list[Y]:
    """What comes out of an operator for items put in `at_once` at a time."""
    out: list[Y] = []
    flow = Dataflow("test")
    op.output("out", operator(op.input("in", flow, TestingSource(items, at_once))), TestingSink(out))
    run_main(flow)
    return out


def fake_claims(server: RedisServer | None = None) -> FakeClaims:
    """Claims of a new instance that may go on."""
    claims = FakeClaims(server or RedisServer(), accept_within_us=ACCEPT_WITHIN_US)
    claims.take_over()
    claims.publish(claims.progress())
    return claims


@contextmanager
def stopped_by(kind: type[Exception], match: str) -> Iterator[None]:
    """The flow must stop with an error of this kind, however Bytewax wraps it."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - looked at below
        yield
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    assert isinstance(error, kind), caught.value
    assert match in str(error)
