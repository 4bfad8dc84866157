"""Paths on which the prefix cache can be separated, and the salt that is written into a body."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_lora_router.protocols import json_edit
from vllm_lora_router.protocols.cache_salt import SALTED_PATHS, runs_no_prompt, write_salt
from vllm_lora_router.protocols.routes import ROUTES

from ..conftest import examples, json_values, strings


def with_salt(content: bytes) -> tuple[bytes, bool]:
    """Return the body with a salt made from the client's own, and whether it was written."""
    members = json_edit.body_members(content)
    written = write_salt(members, lambda client_salt: f"for {client_salt}")
    return json_edit.join_members(members), written


def test_each_route_has_a_salt_or_runs_no_prompt_or_is_refused() -> None:
    assert not any(map(runs_no_prompt, SALTED_PATHS))
    assert {path for path in ROUTES if path not in SALTED_PATHS and not runs_no_prompt(path)} == {
        "/cohere/v2/chat",  # its request class has no cache_salt
        "/v1/decisions",  # part of a later release that has not been examined
    }
    assert all(runs_no_prompt(path) for path, route in ROUTES.items() if route.dry_run)


@pytest.mark.parametrize(
    ("path", "expected"),
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
def test_unknown_paths_may_run_a_prompt(path: str, expected: bool) -> None:
    assert runs_no_prompt(path) is expected


def test_a_salt_is_appended_and_all_other_bytes_are_kept() -> None:
    content = b'{"seed":1.50,"model":"base","messages":[ {"role" : "user","content":"\\u00e9"} ]}'
    assert with_salt(content) == (content[:-1] + b',"cache_salt":"for None"}', True)


def test_the_clients_own_salt_is_replaced_in_place() -> None:
    assert with_salt(b'{"a":1,"cache_salt":"mine","b":1e5}') == (b'{"a":1,"cache_salt":"for mine","b":1e5}', True)
    assert with_salt(b'{"cache_salt":null}') == (b'{"cache_salt":"for None"}', True)
    assert with_salt(b'{"cache_salt":"a","cache\\u005fsalt":"b"}') == (b'{"cache_salt":"for b"}', True)
    assert with_salt(b"{}") == (b'{"cache_salt":"for None"}', True)


@given(st.lists(st.tuples(strings, json_values), max_size=4))
@examples
def test_other_members_are_unchanged(members: list[tuple[str, str]]) -> None:
    content = ("{" + ",".join(f"{key}:{value.strip()}" for key, value in members) + "}").encode()
    before = json_edit.body_members(content)
    after = json_edit.body_members(with_salt(content)[0])
    assert bytes(after.pop("cache_salt")) == b'"for None"'
    assert {key: bytes(raw) for key, raw in after.items()} == {key: bytes(raw) for key, raw in before.items()}


@pytest.mark.parametrize("client_salt", ["x", "x" * 128, "🧂" * 128, " ", "null", "a.b-c_d:e", '"'])
def test_a_valid_client_salt_becomes_part_of_the_salt(client_salt: str) -> None:
    for ascii_only in (True, False):
        content = json.dumps({"cache_salt": client_salt}, ensure_ascii=ascii_only).encode()
        after, written = with_salt(content)
        assert written and json.loads(after) == {"cache_salt": f"for {client_salt}"}


@pytest.mark.parametrize(
    "client_salt",
    ["", "x" * 129, "a@b", "a/b", "a\\b", "a\0b", "\ud800", 1, 0, 1.5, True, False, [], ["x"], {}, {"a": "b"}],
)
def test_an_invalid_client_salt_is_left_for_vllm_to_refuse(client_salt: Any) -> None:
    content = json.dumps({"model": "base", "cache_salt": client_salt}, separators=(",", ":")).encode()
    assert with_salt(content) == (content, False)
