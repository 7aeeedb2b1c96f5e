from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.errors import InputError, UsageError
from dyndeploy.fields import Document, Field

DOCUMENT = Document("The list", "Write it again.", InputError)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
READERS: dict[str, Callable[[Field], Any]] = {
    "text": Field.text,
    "label": Field.label,
    "count": Field.count,
    "tally": Field.tally,
    "number": Field.number,
    "amount": Field.amount,
    "positive": Field.positive,
    "share": Field.share,
    "boolean": Field.boolean,
    "sha256": Field.sha256,
    "facts": Field.facts,
    "texts": lambda field: field.sequence(Field.text, at_least=1),
    "one_of": lambda field: field.one_of("a", "b"),
    "key": lambda field: field["key"],
}


def read(value: Any) -> Field:
    return DOCUMENT.root({"items": [{"size": value}]})["items"].sequence(lambda item: item["size"])[0]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("text", "", "a non-empty text"),
        ("label", "\ud800", "text"),
        ("count", 0, "a whole number of at least 1"),
        ("count", True, "a whole number of at least 1"),
        ("tally", 1 << 21, "at most 1048576"),
        ("number", 10**400, "a finite number"),
        ("amount", 1e-300, r"0 or a number in \[1e-12, 1e\+18\]"),
        ("amount", math.nan, "0 or a number"),
        ("positive", 0.0, "a positive number"),
        ("share", 1.5, r"\[1e-12, 1\]"),
        ("boolean", 1, "true or false"),
        ("sha256", "a" * 63, "a SHA-256 in hex"),
        ("texts", [], "a list that is not empty"),
        ("one_of", [], "one of a, b"),
        ("facts", [], "an object"),
    ],
)
def test_complaints_name_the_field(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(
        InputError, match=rf"The list is malformed: items\[0\]\.size must be .*{wanted}.*Write it again"
    ):
        READERS[name](read(value))


@given(JSON, st.sampled_from(sorted(READERS)))
def test_any_value_is_read_or_refused(value: Any, name: str) -> None:
    try:
        got = READERS[name](read(value))
    except InputError as error:
        str(error).encode()
        return
    if name in ("amount", "positive", "share", "number"):
        assert math.isfinite(got)
    if name in ("amount", "positive", "share"):
        assert got == 0 or 1e-12 <= got <= 1e18
    if name in ("text", "label", "one_of"):
        got.encode()


def test_places() -> None:
    root = DOCUMENT.root({"a": {"b c": 1}, "none": None})
    with pytest.raises(InputError, match=r"a\.x is missing"):
        root["a"]["x"]
    assert root.get("nothing").optional(Field.text) is None and root["none"].optional(Field.text) is None
    with pytest.raises(InputError, match=r"a\['b c'\] must be a non-empty text, not 1"):
        root["a"].mapping(Field.text)
    with pytest.raises(InputError, match="it must be an object, not 3"):
        DOCUMENT.root(3)["x"]


def test_what_a_constructor_refuses_is_a_complaint() -> None:
    def refuse() -> None:
        raise UsageError("Give a budget.")

    with pytest.raises(InputError, match=r"The list is malformed: a: Give a budget\. Write it again\."):
        DOCUMENT.root({"a": 1})["a"].checked(refuse)
    # A complaint from further inside stays as it is.
    with pytest.raises(InputError, match=r"^The list is malformed: a\.b is missing\. Write it again\.$"):
        DOCUMENT.root({"a": {}})["a"].checked(lambda: DOCUMENT.root({"a": {}})["a"]["b"])
