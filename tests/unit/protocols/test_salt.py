"""Which paths keep requests apart in the prefix cache, and what is written into a body for it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.cache_salt import SALTED, runs_nothing, write
from vllm_lora_router.protocols.routes import ROUTES

from ..conftest import examples, json_values, strings


def salted(content: bytes) -> tuple[bytes, bool]:
    """The body with a salt that shows what it was made for, and whether it was written."""
    members = json_edit.whole(content)
    written = write(members, lambda own: f"for {own}")
    return json_edit.join(members), written


def test_every_path_of_the_table_is_salted_runs_nothing_or_is_refused() -> None:
    assert not any(map(runs_nothing, SALTED))
    assert {path for path in ROUTES if path not in SALTED and not runs_nothing(path)} == {
        "/cohere/v2/chat",  # its request class has no cache_salt
        "/v1/decisions",  # of a release that was not looked into
    }
    assert all(runs_nothing(path) for path, route in ROUTES.items() if route.dry)


@pytest.mark.parametrize(
    ("path", "nothing"),
    [
        ("/v1/responses/resp_1/cancel", True),
        ("/v1/responses/a/b/cancel", False),
        ("/v1/responses/cancel", False),
        ("/v1/responses/resp_1/cancel/more", False),
        ("/tokenize", True),
        ("/tokenize\n", False),
        ("/v1/audio/transcriptions", False),
        ("/v1/new", False),
    ],
)
def test_what_is_not_known_runs_something(path: str, nothing: bool) -> None:
    assert runs_nothing(path) is nothing


def test_a_salt_comes_last_and_every_other_byte_stays() -> None:
    content = b'{"seed":1.50,"model":"base","messages":[ {"role" : "user","content":"\\u00e9"} ]}'
    assert salted(content) == (content[:-1] + b',"cache_salt":"for None"}', True)


def test_the_clients_own_is_replaced_where_it_stands() -> None:
    assert salted(b'{"a":1,"cache_salt":"mine","b":1e5}') == (b'{"a":1,"cache_salt":"for mine","b":1e5}', True)
    assert salted(b'{"cache_salt":null}') == (b'{"cache_salt":"for None"}', True)
    assert salted(b'{"cache_salt":"a","cache\\u005fsalt":"b"}') == (b'{"cache_salt":"for b"}', True)
    assert salted(b"{}") == (b'{"cache_salt":"for None"}', True)


@given(st.lists(st.tuples(strings, json_values), max_size=4))
@examples
def test_other_members_stay_as_they_are(members: list[tuple[str, str]]) -> None:
    content = ("{" + ",".join(f"{key}:{value.strip()}" for key, value in members) + "}").encode()
    before = json_edit.whole(content)
    after = json_edit.whole(salted(content)[0])
    assert bytes(after.pop("cache_salt")) == b'"for None"'
    assert {key: bytes(raw) for key, raw in after.items()} == {key: bytes(raw) for key, raw in before.items()}


@pytest.mark.parametrize("own", ["x", "x" * 128, "🧂" * 128, " ", "null", "a.b-c_d:e", '"'])
def test_whatever_vllm_takes_for_a_salt_is_made_a_part_of_ours(own: str) -> None:
    for ascii_only in (True, False):
        content = json.dumps({"cache_salt": own}, ensure_ascii=ascii_only).encode()
        after, written = salted(content)
        assert written and json.loads(after) == {"cache_salt": f"for {own}"}


@pytest.mark.parametrize(
    "own", ["", "x" * 129, "a@b", "a/b", "a\\b", "a\0b", "\ud800", 1, 0, 1.5, True, False, [], ["x"], {}, {"a": "b"}]
)
def test_what_vllm_refuses_stays_so_that_it_does(own: Any) -> None:
    content = json.dumps({"model": "base", "cache_salt": own}, separators=(",", ":")).encode()
    assert salted(content) == (content, False)
