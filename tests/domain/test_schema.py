"""The schema subset: what compiles, what is accepted, and that the fast path means what `check` means."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import shape
from domain.schema import KEYWORDS, Fault, Schema, SchemaError, canonical, compile_schema

Spec = dict[str, Any]
Text = str
"""A JSON text: notation matters here (1.50, 1.5, 15e-1)."""

NAMES = ["a", "b", "f0", "type", "é😀", 'q"', "a.b", ""]
NUMBERS = [
    "0", "-0", "1", "-1", "5", "1.0", "1.5", "1.50", "15e-1", "1E3", "1e3", "-0.0", "0.1", "1e-12", "1e-13",
    "0.123456789012", "0.1234567890120", "0.1234567890123", "999999999999999", "1000000000000000",
    "-999999999999999", "-1000000000000000", "999999999999999.999999999999", "999999999999999.9999999999999",
    "1e15", "1e14", "1E+15", "1e400", "1e-400", "0e400", "123456789012345678901234567890", "1e-999999999999",
    "1." + "0" * 60, "1." + "0" * 60 + "1",
]  # fmt: skip
STRINGS = [
    "", "a", "b", "ab", "abc", "1", "NaN", "1.5", "true", "null", "😀", "😀😀", "e\u0301", "a\n",
    "2026-01-15T08:30:00Z", "2026-02-30T08:30:00Z", "2026-01-15T08:30:60Z", "2026-01-15t08:30:00.123+05:30",
    "2026-01-15",
]  # fmt: skip
SCALARS = [*NUMBERS, *(json.dumps(s) for s in STRINGS), "true", "false", "null"]
ENUMS: dict[str, list[Any]] = {
    "string": ["a", "", "😀", "1"],
    "integer": [0, 1, 5, -1],
    "number": [Decimal("1.5"), 1, Decimal("0.1"), 0],
    "boolean": [True, False],
    "mixed": ["1", 1, True, "a", 0],
}


def bounded(kind: str) -> st.SearchStrategy[Spec]:
    bounds: list[Any] = [-1, 0, 1, 5, 10**15]
    if kind == "number":
        bounds += [Decimal("0.1"), Decimal("1.5"), Decimal("1e-13")]
    keys = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
    return st.dictionaries(st.sampled_from(keys), st.sampled_from(bounds), max_size=2)


def texts() -> st.SearchStrategy[Spec]:
    return st.fixed_dictionaries(
        {},
        optional={
            "minLength": st.integers(0, 2),
            "maxLength": st.integers(1, 3),
            "pattern": st.sampled_from(["^a", "b$", "[0-9]"]),
            "format": st.just("date-time"),
        },
    )


def typed(kind: str, inner: Spec) -> Spec:
    return ({} if kind == "mixed" else {"type": kind}) | inner


def enums(kind: str) -> st.SearchStrategy[Spec]:
    return st.lists(st.sampled_from(ENUMS[kind]), min_size=1, max_size=4, unique_by=lambda v: (type(v), v)).map(
        lambda values: typed(kind, {"enum": values})
    )


def objects(children: st.SearchStrategy[Spec]) -> st.SearchStrategy[Spec]:
    additional = st.one_of(st.booleans(), children)
    properties = st.dictionaries(st.sampled_from(NAMES), children, max_size=4)

    def build(drawn: tuple[Spec, Any, bool, list[bool]]) -> Spec:
        declared, extra, has_extra, required = drawn
        spec: Spec = {"type": "object", "required": [n for n, r in zip(declared, required, strict=False) if r]}
        if declared:
            spec["properties"] = declared
        return spec | ({"additionalProperties": extra} if has_extra else {})

    return st.tuples(properties, additional, st.booleans(), st.lists(st.booleans(), min_size=4, max_size=4)).map(build)


LEAVES = st.one_of(
    texts().map(lambda s: typed("string", s)),
    bounded("integer").map(lambda s: typed("integer", s)),
    bounded("number").map(lambda s: typed("number", s)),
    st.just({"type": "boolean"}),
    *(enums(kind) for kind in ENUMS),
    st.just({"type": "object"}),
    st.just({"type": "array"}),
)


def nullable(specs: st.SearchStrategy[Spec]) -> st.SearchStrategy[Spec]:
    return st.tuples(specs, st.booleans()).map(lambda drawn: drawn[0] | ({"nullable": True} if drawn[1] else {}))


SPECS = objects(
    st.recursive(
        nullable(LEAVES),
        lambda inner: nullable(st.one_of(objects(inner), inner.map(lambda s: {"type": "array", "items": s}))),
        max_leaves=4,
    )
)
ANY_TEXT: st.SearchStrategy[Text] = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=3).map(lambda d: write(d)),
    ),
    max_leaves=4,
)


def write(members: dict[str, Text]) -> Text:
    return "{" + ",".join(f"{json.dumps(name)}: {text}" for name, text in members.items()) + "}"


def documents(spec: Spec) -> st.SearchStrategy[Text]:
    """Texts that often fit the schema, and near misses."""
    fitting = _fitting(spec)
    near = st.sampled_from(SCALARS)
    return st.integers(0, 19).flatmap(lambda n: ANY_TEXT if n == 0 else near if n == 1 else fitting)


def _fitting(spec: Spec) -> st.SearchStrategy[Text]:
    if "enum" in spec:
        return st.sampled_from([json.dumps(v) if not isinstance(v, Decimal) else str(v) for v in spec["enum"]])
    match spec["type"]:
        case "string":
            return st.sampled_from([json.dumps(s) for s in STRINGS])
        case "integer" | "number":
            return st.sampled_from(NUMBERS)
        case "boolean":
            return st.sampled_from(["true", "false"])
        case "array":
            items = documents(spec["items"]) if "items" in spec else ANY_TEXT
            return st.lists(items, max_size=3).map(lambda texts: f"[{','.join(texts)}]")
        case _:
            return _fitting_object(spec)


def _fitting_object(spec: Spec) -> st.SearchStrategy[Text]:
    declared = {name: documents(child) for name, child in spec.get("properties", {}).items()}
    required = {name: text for name, text in declared.items() if name in spec["required"]}
    optional = {name: text for name, text in declared.items() if name not in spec["required"]}
    extra = spec.get("additionalProperties", True)
    others = st.sampled_from([n for n in NAMES if n not in declared])
    more: st.SearchStrategy[dict[str, Text]] = st.just({})
    if extra is not False:
        more = st.dictionaries(others, documents(extra) if isinstance(extra, dict) else ANY_TEXT, max_size=2)
    both = st.tuples(st.fixed_dictionaries(required, optional=optional), more)
    return both.flatmap(lambda d: st.permutations(list((d[0] | d[1]).items()))).map(lambda items: write(dict(items)))


def generic(text: Text) -> Any:
    return msgspec.json.Decoder(float_hook=Decimal).decode(text)


def fast(schema: Schema, text: Text) -> Any:
    """What the flow does; None if refused."""
    try:
        data = msgspec.json.Decoder(schema.type, float_hook=Decimal).decode(text)
    except msgspec.ValidationError:
        return None
    return None if schema.refine and schema.refine(data) else data


def builtins(data: Any) -> Any:
    return msgspec.to_builtins(data, builtin_types=(Decimal,))


def form(value: Any) -> str:
    """A text that tells apart what differs in value or type, whatever the order of keys."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k!r}:{form(v)}" for k, v in sorted(value.items())) + "}"
    return f"[{','.join(map(form, value))}]" if isinstance(value, list) else repr(value)


def compiled(spec: Spec) -> Schema | None:
    try:
        return compile_schema(spec)
    except SchemaError:
        return None  # bounds without a value between them, an enum against its pattern


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_decoding_and_refining_accepts_exactly_what_check_accepts(data: st.DataObject) -> None:
    spec = data.draw(SPECS)
    schema = compiled(spec)
    if schema is None:
        return
    for text in data.draw(st.lists(documents(spec), min_size=1, max_size=4)):
        decoded = fast(schema, text)
        fault = schema.check(generic(text))
        assert (decoded is None) == (fault is not None), (text, fault)
        if decoded is None:
            continue
        expected = shape.convert(schema.shape, generic(text))
        assert form(builtins(decoded)) == form(expected)
        for path in declared_paths(spec):
            assert form(builtins(schema.getter(path)(decoded))) == form(walk(expected, path))


def declared_paths(spec: Spec) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, child in spec.get("properties", {}).items():
        found += [(name,), *((name, *rest) for rest in declared_paths(child))]
    return found


def walk(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if value is not None else None
    return value


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_canonical_bytes_are_equal_iff_the_declared_values_are(data: st.DataObject) -> None:
    spec = data.draw(SPECS)
    schema = compiled(spec)
    if schema is None:
        return
    seen: dict[bytes, str] = {}
    for text in data.draw(st.lists(documents(spec), min_size=2, max_size=5)):
        decoded = fast(schema, text)
        if decoded is not None:
            value = form(shape.convert(schema.shape, generic(text)))
            assert seen.setdefault(canonical(decoded), value) == value
    assert len(set(seen.values())) == len(seen)


EVENT: Spec = {
    "type": "object",
    "required": ["bytes"],
    "properties": {
        "bytes": {"type": "integer", "minimum": 0},
        "cost": {"type": "number", "nullable": True, "exclusiveMinimum": 0, "maximum": Decimal("99.5")},
        "region": {"type": "string", "enum": ["eu", "us"]},
        "at": {"type": "string", "format": "date-time"},
        "request": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string", "maxLength": 2}}},
        "tags": {"type": "array", "items": {"type": "number"}},
        "free": {"type": "object"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("{}", "data.bytes: is missing"),
        ("null", "data: must not be null"),
        ("[]", "data: must be an object, not an array"),
        ('{"bytes": true}', "data.bytes: must be an integer, not a boolean"),
        (
            '{"bytes": 1.0}',
            (
                "data.bytes: must be an integer, not a number with fraction or exponent; "
                "write it as an integer, without fraction or exponent"
            ),
        ),
        ('{"bytes": -1}', "data.bytes: must be at least 0"),
        ('{"bytes": 1000000000000000}', "data.bytes: must be less than 10^15 in size"),
        ('{"bytes": 1, "cost": "1"}', "data.cost: must be a number, not a string"),
        ('{"bytes": 1, "cost": 0}', "data.cost: must be greater than 0 and at most 99.5"),
        ('{"bytes": 1, "cost": 99.500000000001}', "data.cost: must be greater than 0 and at most 99.5"),
        ('{"bytes": 1, "cost": 1e-13}', "data.cost: has more than 12 decimals"),
        ('{"bytes": 1, "cost": 1e400}', "data.cost: must be less than 10^15 in size"),
        ('{"bytes": 1, "region": "asia"}', "data.region: must be one of eu, us"),
        ('{"bytes": 1, "region": null}', "data.region: must not be null"),
        (
            '{"bytes": 1, "at": "2026-01-15"}',
            "data.at: is not a date-time; write RFC 3339 with an offset: 2026-01-15T08:30:00Z",
        ),
        ('{"bytes": 1, "request": {"id": "abc"}}', "data.request.id: has 3 characters, must have at most 2"),
        ('{"bytes": 1, "request": {}}', "data.request.id: is missing"),
        ('{"bytes": 1, "tags": [1, 2.5, "x"]}', "data.tags[2]: must be a number, not a string"),
        ('{"bytes": 1, "labels": {"a": "b", "c": 1}}', "data.labels.c: must be a string, not an integer"),
    ],
)
def test_a_refused_value_is_named_by_path(text: Text, detail: str) -> None:
    schema = compile_schema(EVENT)
    assert str(schema.check(generic(text))) == detail
    assert fast(schema, text) is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"bytes": 1, "cost": 1e-13}', "data.cost"),
        ('{"bytes": 1, "tags": [1, 2.5, "x"]}', "data.tags[2]"),
        ('{"bytes": 1, "at": "x"}', "data.at"),
    ],
)
def test_refine_names_the_same_fault_as_check(text: Text, path: str) -> None:
    schema = compile_schema(EVENT)
    data = msgspec.json.Decoder(schema.type, float_hook=Decimal).decode(text)
    assert schema.refine is not None
    fault = schema.refine(data)
    assert fault is not None and fault.path == path
    assert fault == schema.check(generic(text))


def test_numbers_become_integers_scaled_by_10_to_the_12() -> None:
    schema = compile_schema(EVENT)
    data = fast(schema, '{"bytes": 7, "cost": 1.50, "tags": [1, 0.000000000001, -0.0, 1E3]}')
    assert schema.getter(("bytes",))(data) == 7
    assert schema.getter(("cost",))(data) == 1_500_000_000_000
    assert schema.getter(("tags",))(data) == [10**12, 1, 0, 10**15]


def test_getters_give_none_for_what_is_absent_or_null_on_the_way() -> None:
    schema = compile_schema(EVENT)
    data = fast(schema, '{"bytes": 7, "cost": null}')
    for path in (("cost",), ("region",), ("request",), ("request", "id")):
        assert schema.getter(path)(data) is None
    with pytest.raises(KeyError):
        schema.getter(("nothing",))


def test_nothing_is_left_to_refine_when_msgspec_says_it_all() -> None:
    spec = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}, "s": {"type": "string"}}}
    assert compile_schema(spec).refine is None


def canonical_of(spec: Spec) -> Callable[[Text], bytes]:
    schema = compile_schema(spec)

    def encode(text: Text) -> bytes:
        data = fast(schema, text)
        assert data is not None
        return canonical(data)

    return encode


def test_canonical_bytes_do_not_depend_on_order_notation_or_undeclared_properties() -> None:
    encode = canonical_of(EVENT)
    base = encode('{"bytes": 1, "cost": 1.5, "free": {"x": 1.5, "y": [1000, 100000000000000000000]}}')
    assert base == encode(
        '{"free":{"y":[1E3,1e20],"x":1.50},\n"other": [1, 2], "cost":15e-1,"bytes":1}'
    )  # same values, other notation
    assert base == encode('{"cost":1.500,"bytes":1,"free":{"x":0.15E1,"y":[1000.0,100000000000000000000.0]}}')


def test_a_null_for_an_optional_property_is_no_difference() -> None:
    encode = canonical_of(EVENT)
    assert encode('{"bytes": 1, "cost": null}') == encode('{"bytes": 1}') != encode('{"bytes": 1, "cost": 2}')


def test_canonical_bytes_tell_apart_what_differs() -> None:
    encode = canonical_of(EVENT)
    members = [
        '"x": 1', '"cost": 1', '"free": {}', '"free": {"x": 1}', '"free": {"x": "1"}', '"tags": []',
        '"free": {"x": null}', '"free": {"x": true}', '"tags": [1]', '"tags": [10]', '"labels": {"a": "1"}',
        '"region": "eu"',
    ]  # fmt: skip
    assert len({encode(f'{{"bytes": 1, {more}}}') for more in members}) == len(members)


def test_canonical_bytes_do_not_depend_on_the_order_of_the_schema() -> None:
    turned = EVENT | {"properties": dict(reversed(EVENT["properties"].items()))}
    text = '{"bytes": 1, "region": "eu", "cost": 2}'
    assert canonical_of(EVENT)(text) == canonical_of(turned)(text)


def test_deep_free_form_data_is_refined_without_recursion() -> None:
    schema = compile_schema({"type": "object"})
    text = '{"a":' * 490 + "1.50" + "}" * 490
    other = '{"a":' * 490 + "1.5" + "}" * 490
    assert canonical(fast(schema, text)) == canonical(fast(schema, other))


def test_describe_says_what_the_catalog_asks() -> None:
    schema = compile_schema(EVENT)
    cost, region, inner = schema.describe(("cost",)), schema.describe(("region",)), schema.describe(("request", "id"))
    assert cost is not None and region is not None and inner is not None
    assert (cost.type, cost.minimum, cost.exclusive_minimum, cost.nullable) == ("number", None, Decimal(0), True)
    assert (region.type, region.enum, region.required) == ("string", frozenset({"eu", "us"}), False)
    assert (inner.type, inner.required) == ("string", True)
    assert schema.describe(("request", "nothing")) is None
    assert schema.types()["tags[]"] == "number"
    assert schema.types()["labels.*"] == "string"


def test_every_fault_of_a_schema_is_reported_at_once_with_its_remedy() -> None:
    spec = {
        "type": "object",
        "propertis": {},
        "required": ["regoin", "region", "region"],
        "properties": {
            "region": {"type": ["string", "null"]},
            "bytes": {"type": "int"},
            "count": {"type": "integer", "minimum": 5, "maximum": 4, "minLength": 1},
            "size": {"type": "number", "exclusiveMinimum": True},
            "id": {"type": "string", "format": "uuid", "pattern": "("},
            "kind": {"type": "string", "enum": ["a", 1, None]},
            "any": {},
            "list": {"type": "array", "items": {"anyOf": []}},
        },
    }
    with pytest.raises(SchemaError) as caught:
        compile_schema(spec)
    found = {(fault.path, fault.remedy) for fault in caught.value.faults}
    assert found == {
        ("propertis", "did you mean properties?"),
        ("required[0]", "did you mean region?"),
        ("required[2]", "write it once"),
        ("properties.region.type", "give one type; say nullable: true for null"),
        ("properties.bytes.type", "did you mean integer?"),
        ("properties.count", "lower the minimum or raise the maximum"),
        ("properties.count.minLength", "leave it out or change the type"),
        ("properties.size.exclusiveMinimum", "write a number"),
        ("properties.id.format", "use date-time, or a pattern"),
        ("properties.id.pattern", "correct it"),
        ("properties.kind.enum[1]", "put it in quotes"),
        ("properties.kind.enum[2]", "leave it out and say nullable: true"),
        ("properties.any", "say type: one of string, integer, number, boolean, object, array"),
        ("properties.list.items", "say type: one of string, integer, number, boolean, object, array"),
        ("properties.list.items.anyOf", "give one type"),
    }


@pytest.mark.parametrize("spec", [{"type": "string"}, {"type": "object", "nullable": True}, {"type": "array"}, {}, 3])
def test_data_is_an_object(spec: Any) -> None:
    with pytest.raises(SchemaError):
        compile_schema(spec)


def test_annotations_are_ignored() -> None:
    notes = {"title": "t", "description": "d", "examples": [1]}
    schema = compile_schema({"type": "object", **notes, "properties": {"n": {"type": "integer", **notes}}})
    assert schema.check({"n": 1}) is None
    assert set(notes) < set(KEYWORDS)


def test_faults_print_with_path_and_remedy() -> None:
    assert str(Fault("a.b", "is wrong", "mend it")) == "a.b: is wrong; mend it"
    assert str(Fault("", "is wrong")) == "is wrong"


@pytest.mark.parametrize("pattern", ["^(a+)+$", "(a|aa)+$", "(.*)*$x", "^(([a-z])+.)+[A-Z]$", "a*a*a*a*a*b"])
def test_no_pattern_takes_longer_than_the_text_is_long(pattern: str) -> None:
    """Python's own expressions take exponential time for these (or quadratic), and the flow would stand still."""
    schema = compile_schema({"type": "object", "properties": {"s": {"type": "string", "pattern": pattern}}})
    began = time.perf_counter()
    assert schema.check({"s": "a" * 1_000_000 + "!"}) is not None
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("pattern", "value", "found"),
    [("^a$", "a", True), ("^a$", "a\n", False), ("^.$", "😀", True), ("é", "café", True), (r"^\d$", "\u0662", False)],
)
def test_a_pattern_is_read_as_json_schema_has_it(pattern: str, value: str, found: bool) -> None:
    schema = compile_schema({"type": "object", "properties": {"s": {"type": "string", "pattern": pattern}}})
    assert (schema.check({"s": value}) is None) == found


@pytest.mark.parametrize("pattern", ["(", "(?=a)", r"(a)\1", "a{1001}", "((a{100}){100}){100}", "[b-a]", "\\"])
def test_what_is_no_linear_expression_is_a_fault(pattern: str) -> None:
    with pytest.raises(SchemaError, match=r"is no regular expression \(RE2\)"):
        compile_schema({"type": "object", "properties": {"s": {"type": "string", "pattern": pattern}}})
