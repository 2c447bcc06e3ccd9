"""The catalog: read from YAML, validated as a whole, and compared with the version before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from zoneinfo import ZoneInfo

from config import yaml_text
from config.catalog_build import build
from config.catalog_file import catalog_json_schema
from domain.catalog import Catalog, CatalogVersion, History, Meter, Subscription
from domain.ports import TallyError
from domain.schema import Fault

__all__ = [
    "SAMPLES",
    "CatalogError",
    "catalog_json_schema",
    "check_change",
    "load_catalog",
    "load_history",
    "sample_text",
]

SAMPLES = ("api", "llm", "web")
"""Names of the sample catalogs; `api` is what runs when no catalog is given."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class CatalogError(TallyError):
    """A catalog that cannot be used; `faults` has everything that is wrong, in the order of the text."""

    def __init__(self, faults: Sequence[Fault], lines: Mapping[str, int] | None = None) -> None:
        self.faults = tuple(faults)
        known = lines or {}
        texts = [f"  line {known[f.path]}: {f}" if known.get(f.path) else f"  {f}" for f in self.faults]
        count = "1 fault" if len(texts) == 1 else f"{len(texts)} faults"
        super().__init__("\n".join([f"the catalog has {count}:", *texts]))


def load_catalog(text: str) -> Catalog:
    """The catalog that a YAML text describes.

    Raises:
        CatalogError: with every fault, each with its path, its line and a remedy.
    """
    document = yaml_text.read(text)
    catalog, faults = (None, []) if document.value is None and document.faults else build(document.value)
    faults = document.faults + faults
    if faults or catalog is None:
        lines = {fault.path: document.line(fault.path) for fault in faults}
        raise CatalogError(sorted(faults, key=lambda fault: lines[fault.path]), lines)
    return catalog


def load_history(rows: Sequence[tuple[int, int, str]]) -> History:
    """The applied catalogs from (version, effective_from_us, yaml) rows, in any order.

    Raises:
        CatalogError: a version cannot be read, or versions or times do not follow each other.
    """
    ordered = sorted(rows)
    if not ordered:
        raise CatalogError([Fault("", "no catalog has been applied", "apply one")])
    for (number, since, _), (following, later, _) in pairwise(ordered):
        if following != number + 1 or later <= since:
            message = f"version {following} (from {later}) does not follow version {number} (from {since})"
            raise CatalogError([Fault("", message, "restore the table of catalogs")])
    return History(tuple(_version(*row) for row in ordered))


def _version(number: int, effective_from_us: int, text: str) -> CatalogVersion:
    return CatalogVersion(number, effective_from_us, load_catalog(text), sha256(text.encode()).hexdigest(), text)


def sample_text(name: str) -> str:
    """The YAML of a sample catalog.

    Raises:
        TallyError: there is no such sample.
    """
    if name not in SAMPLES:
        raise TallyError(f"no sample catalog {name!r}; use one of {', '.join(SAMPLES)}")
    return (files("config") / "catalogs" / f"{name}.yaml").read_text("utf-8")


def check_change(history: History, new: Catalog, effective_from_us: int) -> list[Fault]:
    """What forbids a catalog to follow a history from a log time on; empty if nothing does.

    What decided the outcome of events already accepted must stay: how late they may come, what meters
    mean, the types of properties, the currency, and subscriptions until the day of the change.
    """
    old = history.versions[-1]
    before = old.catalog
    return [
        *_fixed(old, new, effective_from_us),
        *_meters({name: m for version in history.versions for name, m in version.catalog.meters.items()}, new),
        *_properties(before, new),
        *_subscriptions(before, new, effective_from_us),
    ]


def _fixed(old: CatalogVersion, new: Catalog, effective_from_us: int) -> Iterator[Fault]:
    if effective_from_us <= old.effective_from_us:
        message = f"version {old.version} holds from that time on, or later"
        yield Fault("effective_from", message, "choose a later log time")
    if new.accept_within_us != old.catalog.accept_within_us:
        yield Fault("accept_within", "may not change", "restore it: claims are kept by it")
    if new.timezone != old.catalog.timezone:
        remedy = f"restore {old.catalog.timezone}, and give subscriptions zones of their own"
        yield Fault("timezone", "may not change: windows already cut would overlap new ones", remedy)
    if new.currency != old.catalog.currency:
        remedy = f"restore {old.catalog.currency}: running periods are priced in it"
        yield Fault("currency", "may not change", remedy)


def _meters(old: Mapping[str, Meter], new: Catalog) -> Iterator[Fault]:
    parts = ("event_type", "aggregation", "value", "group_by", "where", "window")
    for name, meter in new.meters.items():
        if name not in old or old[name].identity() == meter.identity():
            continue
        pairs = zip(parts, old[name].identity(), meter.identity(), strict=True)
        changed = ", ".join(part for part, one, other in pairs if one != other)
        yield Fault(f"meters.{name}", f"its {changed} may not change once it is used", "name it anew")


def _properties(old: Catalog, new: Catalog) -> Iterator[Fault]:
    for name, event_type in new.event_types.items():
        if name not in old.event_types:
            continue
        before = old.event_types[name].schema.types()
        for path, kind in event_type.schema.types().items():
            if before.get(path, kind) != kind:
                message = f"{path} was of type {before[path]} and may not become {kind}"
                yield Fault(f"event_types.{name}.schema", message, "declare a property of another name")


def _subscriptions(old: Catalog, new: Catalog, effective_from_us: int) -> Iterator[Fault]:
    for subject, entries in old.subscriptions.items():
        by_start = {entry.start: entry for entry in new.subscriptions.get(subject, ())}
        for entry in entries:
            found = by_start.get(entry.start)
            path = f"subscriptions ({subject} from {entry.start})"
            if found is None:
                yield Fault(path, "is gone", "keep it, and set its end")
            else:
                yield from _subscription(entry, found, path, effective_from_us)


def _subscription(old: Subscription, new: Subscription, path: str, effective_from_us: int) -> Iterator[Fault]:
    if new.plan != old.plan:
        yield Fault(path, f"was on plan {old.plan} and may not move to {new.plan}", "end it, and add another")
    if new.timezone != old.timezone:
        yield Fault(path, f"its zone {old.timezone} may not become {new.timezone}", "end it, and add another")
    today = _local_day(effective_from_us, old.timezone)
    if old.end != new.end and any(end is not None and end < today for end in (old.end, new.end)):
        message = f"its end may not change from {old.end or 'open'} to {new.end or 'open'}"
        yield Fault(path, message, f"only an end on {today} or later may be set or changed")


def _local_day(us: int, zone: str) -> date:
    return (_EPOCH + timedelta(microseconds=us)).astimezone(ZoneInfo(zone)).date()
