"""Report usage to tallyflow, ask whether a quota allows something, and act on signals."""

from tallyflow._delivery import BufferFull, EmitterClosed, EmitterStats, Undelivered
from tallyflow.emitter import UsageEmitter
from tallyflow.events import UsageEvent
from tallyflow.quotas import AsyncQuotas, QuotaCheck, Quotas, QuotasUnreachable, QuotaUnknown
from tallyflow.signals import Signal, SignalStream, SignalsUnreachable, subscribe

__all__ = [
    "AsyncQuotas",
    "BufferFull",
    "EmitterClosed",
    "EmitterStats",
    "QuotaCheck",
    "QuotaUnknown",
    "Quotas",
    "QuotasUnreachable",
    "Signal",
    "SignalStream",
    "SignalsUnreachable",
    "Undelivered",
    "UsageEmitter",
    "UsageEvent",
    "subscribe",
]
