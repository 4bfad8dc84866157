"""The check of the admin key."""

import logging

import pytest

from vllm_lora_router.server.admin_key import (
    MAX_ADDRESSES,
    MAX_WRONG_KEYS,
    PERIOD_S,
    AdminKeyError,
    AdminKeys,
    TooManyWrongKeysError,
)

VARIABLE = "TEST_ADMIN_KEY"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AdminKeys:
    monkeypatch.setenv(VARIABLE, "boss")
    return AdminKeys(clock)


def send_wrong_keys(keys: AdminKeys, number: int, address: str = "10.0.0.1") -> None:
    for _ in range(number):
        with pytest.raises(AdminKeyError):
            keys.check(VARIABLE, "wrong", address)


@pytest.mark.parametrize("expected", ["boss", "Schlüssel", "ключ", "鍵"])
def test_key_is_accepted_in_utf_8(keys: AdminKeys, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, expected)
    keys.check(VARIABLE, expected.encode().decode("latin-1"), "10.0.0.1")  # as Starlette decodes the header


def test_key_is_accepted_in_latin_1(keys: AdminKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "Schlüssel")
    keys.check(VARIABLE, "Schlüssel", "10.0.0.1")


@pytest.mark.parametrize(("variable", "key"), [(VARIABLE, None), (VARIABLE, ""), (VARIABLE, "?"), (None, "boss")])
def test_missing_wrong_and_unconfigured_keys_are_refused(
    keys: AdminKeys, variable: str | None, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "鍵")
    with pytest.raises(AdminKeyError):
        keys.check(variable, key, "10.0.0.1")


def test_address_is_refused_after_wrong_keys_and_accepted_again_later(keys: AdminKeys, clock: Clock) -> None:
    send_wrong_keys(keys, MAX_WRONG_KEYS)
    for key in ("wrong", "boss"):
        with pytest.raises(TooManyWrongKeysError):
            keys.check(VARIABLE, key, "10.0.0.1")
    keys.check(VARIABLE, "boss", "10.0.0.2")
    clock.now += PERIOD_S + 1
    keys.check(VARIABLE, "boss", "10.0.0.1")


def test_requests_without_key_are_not_counted(keys: AdminKeys) -> None:
    for _ in range(MAX_WRONG_KEYS + 1):
        with pytest.raises(AdminKeyError):
            keys.check(VARIABLE, None, "10.0.0.1")
    keys.check(VARIABLE, "boss", "10.0.0.1")


def test_wrong_keys_are_logged_at_most_once_a_minute_without_the_key(
    keys: AdminKeys, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vllm_lora_router.server"):
        send_wrong_keys(keys, 5)
        clock.now += PERIOD_S
        send_wrong_keys(keys, 1, "10.0.0.2")
    assert caplog.messages == [
        "admin key: 1 wrong key(s) since the last such line, the last from 10.0.0.1",
        "admin key: 5 wrong key(s) since the last such line, the last from 10.0.0.2",
    ]


def test_number_of_remembered_addresses_is_bounded(keys: AdminKeys) -> None:
    for number in range(MAX_ADDRESSES + 10):
        send_wrong_keys(keys, 1, f"address {number}")
    assert len(keys._wrong_keys) == MAX_ADDRESSES
