"""No secret reaches a log, a metric or an error."""

import pytest

from services.shared.masking import MASK, is_secret_name, mask_text, mask_value


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "PASSWORD",
        "db_password",
        "token",
        "X-Auth-Token",
        "secret",
        "client_secret",
        "authorization",
        "api_key",
        "api-key",
        "apiKey",
        "key",
        "credentials",
        "private_key",
        "Cookie",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["symbol", "keepalive", "monkey", "page_token", "next_page_token"])
def test_harmless_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "connect nats://user:hunter2@broker:4222 failed",
        "redis://:hunter2@cache",
        "https://hunter2@host/path",
        "GET /?api_key=hunter2&x=1",
        "password: hunter2",
        "{'token': 'hunter2'}",
        '{"client_secret": "hunter2"}',
        "Authorization: Bearer hunter2hunter2",
        "sent Bearer hunter2hunter2",
        "authorization=Basic aHVudGVyMmh1bnRlcjI=hunter2",
    ],
)
def test_secrets_in_text(text: str) -> None:
    masked = mask_text(text)
    assert "hunter2" not in masked
    assert MASK in masked


@pytest.mark.parametrize(
    "text",
    [
        "BTC-USDT at 12:30, depth=20",
        "nats://127.0.0.1:4222",
        "mail someone@example.org",
        "page_token=abc",
        "key: value",
    ],
)
def test_other_text_is_untouched(text: str) -> None:
    assert mask_text(text) == text


def test_nested_values() -> None:
    value = {
        "venue": {"api_key": "hunter2", "depth": 5, "urls": ["ws://u:hunter2@h"]},
        "accounts": [{"password": "hunter2"}],
    }
    masked = mask_value("settings", value)
    assert "hunter2" not in repr(masked)
    assert masked["venue"]["depth"] == 5


def test_absent_secret_shows_that_it_is_absent() -> None:
    assert mask_value("api_key", None) is None
