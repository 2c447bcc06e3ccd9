"""A sign-up, a change of plan and a cancellation in mid-run, and kills: periods, prices and quotas are the oracle's."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta

from tests.system.system import System
from tests.system.traffic import Traffic


def test_a_subscription_is_created_and_its_plan_changed_in_mid_run(system: System) -> None:
    traffic = Traffic(seed=31)
    today = datetime.now(UTC).date()
    with system.flow() as flow:
        system.emit(traffic.events(200))
        with system.emitter() as emitter:
            for number in range(1, 7):
                start = today - timedelta(days=number)
                emitter.subscription(f"customer-{number}", "create", plan="pro", start=start, timezone="Asia/Tokyo")
            emitter.subscription("customer-7", "create", plan="nothing-we-have")
            assert emitter.flush(60)
        system.emit(traffic.events(200))
        flow.kill(0, signal.SIGKILL)
        with system.emitter() as emitter:
            emitter.subscription("customer-1", "change", plan="free")
            emitter.subscription("customer-2", "end")
            emitter.subscription("customer-8", "change", plan="pro")
            assert emitter.flush(60)
        system.emit(traffic.events(200))
        system.settle(flow)
        flow.kill(1, signal.SIGKILL)
        system.emit(traffic.events(100))
        system.settle(flow)
    tables = system.check()
    plans = {(key[0], key[1]) for key in tables.rated_usage}
    assert {("customer-3", "free"), ("customer-3", "pro")} <= plans
    reasons = {row["reason"] for row in tables.rejects.values()}
    assert "subscription_invalid" in reasons and "schema_violation" in reasons
