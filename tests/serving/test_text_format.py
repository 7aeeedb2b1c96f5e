"""Protobuf's text format; Triton's own schema reads whole configurations in test_triton.py."""

from __future__ import annotations

from dyndeploy.serving.text_format import Word, text_format


def test_messages_lists_words_and_strings() -> None:
    message = {
        "name": 'a "b"\n',
        "dims": [-1, 3],
        "optional": True,
        "kind": Word("KIND_CPU"),
        "input": [{"name": "x", "empty": []}, {"name": "y"}],
    }
    assert text_format(message) == (
        'name: "a \\"b\\"\\n"\ndims: -1\ndims: 3\noptional: true\nkind: KIND_CPU\n'
        'input {\n  name: "x"\n}\ninput {\n  name: "y"\n}\n'
    )
