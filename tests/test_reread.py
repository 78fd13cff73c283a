"""What a running server takes over from settings that are read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hotswap.config import ConfigError, ServerConfig, Settings, listening_on, load_settings
from hotswap.options import OPTIONS
from hotswap.reread import merged


def settings(*words: str) -> Settings:
    return load_settings(["--model", "a/b", *words], {})


def test_rules_catalogue_and_logging_change_and_are_named() -> None:
    current = settings()
    asked = settings("--patience-s", "7", "--log-level", "debug", "--served-model-name", "c")
    found = merged(current, asked)
    assert found.settings == asked
    assert set(found.changed) == {"--patience-s", "--log-level", "--served-model-name"}
    assert found.kept == ()


def test_where_it_listens_and_for_whom_stays_and_is_named() -> None:
    current = settings("--api-key", "old", "--park-memory", "1GB")
    asked = settings("--port", "1", "--api-key", "new", "--park-memory", "2GB", "--max-queue", "9")
    found = merged(current, asked)
    assert found.settings.server == current.server
    assert found.settings.swap == replace(current.swap, max_queue=9)
    assert found.kept == ("--port", "--api-key", "--park-memory")
    assert not any("new" in name or "old" in name for name in found.kept), "no secrets"


def test_settings_per_model_change(tmp_path: Path) -> None:
    file = tmp_path / "hotswap.yaml"
    file.write_text("models: {a/b: {max_model_len: 5}}")
    current = settings("--config", str(file))
    file.write_text("models: {a/b: {max_model_len: 6}}")
    found = merged(current, settings("--config", str(file)))
    assert found.changed == ("models:",)
    assert found.settings.catalog.models["a/b"]["max_model_len"] == 6


def test_what_would_be_open_to_all_with_what_stays_is_refused() -> None:
    """Each is fine by itself: it listens to everybody, and it is asked to let requests download
    where only this machine could make any."""
    current = settings("--host", "0.0.0.0")
    with pytest.raises(ConfigError, match="--allow-download"):
        merged(current, settings("--allow-download", "*"))


def test_nothing_changes_where_nothing_was_changed() -> None:
    found = merged(settings(), settings())
    assert (found.changed, found.kept) == ((), ())


def test_every_setting_of_the_server_is_either_kept_or_looked_at_when_it_is_needed() -> None:
    """A new one is decided about here."""
    live = {option.flag for option in OPTIONS if not option.fixed and "server." in option.target}
    assert live == {"hang-timeout-s", "no-self-restart", "log-level", "log-format"}


@pytest.mark.parametrize(
    ("host", "address", "found"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0", "0.0.0.0"),
        ("my-host", "192.168.1.1", "my-host"),
        ("localhost", "::1", "localhost"),
    ],
)
def test_a_socket_that_is_open_to_others_is_never_taken_for_a_local_one(
    host: str, address: str, found: str
) -> None:
    asked = Settings(server=ServerConfig(host=host, api_keys=("key",)))
    asked = replace(asked, catalog=replace(asked.catalog, model="a/b"))
    assert listening_on(asked, address).server.host == found


def test_a_socket_that_is_open_to_others_needs_a_key_for_managing() -> None:
    with pytest.raises(ConfigError, match="--dev-mode"):
        listening_on(settings("--dev-mode"), "0.0.0.0")
