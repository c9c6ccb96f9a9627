"""JSON with comments and trailing commas: what counts, what does not, and where mistakes are."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxq.errors import ConfigError
from jaxq.jobs.json_text import parse_json, read_json

GOOD = {
    "plain": ('{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
    "line comment": ('{"a": 1} // the end', {"a": 1}),
    "hash comment": ('# first\n{"a": 1, # one\n "b": 2}', {"a": 1, "b": 2}),
    "block comment": ('/* of\n two lines */ {"a": /* inside */ 1}', {"a": 1}),
    "trailing commas": ('{"a": [1, 2,],\n}', {"a": [1, 2]}),
    "comma before a comment": ('{"a": 1, // last\n}', {"a": 1}),
    "signs in strings": ('{"a": "http://x", "b": "#1", "c": "/* no */", "d": ",}"}',
                         {"a": "http://x", "b": "#1", "c": "/* no */", "d": ",}"}),
    "escaped quotes": (r'{"a": "say \"//\" # \\"}', {"a": 'say "//" # \\'}),
    "byte order mark": ('\ufeff{"a": 1}', {"a": 1}),
}  # fmt: skip


@pytest.mark.parametrize("text, value", GOOD.values(), ids=GOOD)
def test_comments_and_trailing_commas_are_read_past(text, value, tmp_path):
    (tmp_path / "file.json").write_text(text, encoding="utf-8")
    assert read_json(tmp_path / "file.json") == value


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_json_writes_is_read_as_it_is(value):
    assert parse_json(json.dumps(value, indent=1), "text") == value


BAD = {
    "two commas": ('{"a": 1,\n ,}', r"f, line 2, column 3: Expecting property name .*, in ',}'"),
    "position after a comment": ('{/* long */ "a" 1}', "f, line 1, column 17: Expecting ':' delimiter"),
    "Python's true": ('{"a": True}', r"Expecting value.*; JSON writes true, false and null"),
    "single quotes": ("{'a': 1}", "JSON has double quotes only"),
    "unclosed string": ('{"a": "x}\n', "f, line 1, column 7: Unterminated string|Invalid control character"),
    "nothing": ("", "f, line 1, column 1: Expecting value"),
    "a key twice": ('{"a": 1, "a": 2}', "f: key 'a' is there twice in one object; keep one of them"),
    "not a number": ('{"a": NaN}', "f: NaN is not JSON; write a finite number, or null"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD)
def test_what_is_no_json_is_refused_with_its_place(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_json(text, "f")


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read '.*nowhere\.json': No such file"):
        read_json(tmp_path / "nowhere.json")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ConfigError, match=r"latin\.json' is no text in UTF-8"):
        read_json(tmp_path / "latin.json")
