from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from hotswap import demo
from hotswap.config import (
    CatalogConfig,
    ConfigError,
    ServerConfig,
    Settings,
    SwapRules,
    load_settings,
    settings_table,
    settle_files,
    settle_threads,
    warnings_about,
)
from hotswap.contracts.models import EngineConfig
from hotswap.options import OPTIONS


def load(*argv: str, **environ: str) -> Settings:
    return load_settings(argv, environ)


def refusal(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(*argv, **environ)
    message = str(raised.value)
    assert "\n" not in message
    return message


def written(folder: Path, text: str) -> str:
    path = folder / "hotswap.yaml"
    path.write_text(text)
    return str(path)


class TestFlags:
    def test_the_main_form(self) -> None:
        settings = load("--model", "Qwen/Qwen3-0.6B", "--enable-on-demand-loading")
        assert settings == Settings(
            catalog=CatalogConfig(model="Qwen/Qwen3-0.6B"), swap=SwapRules(on_demand=True)
        )

    def test_serve_takes_the_model_without_a_flag(self) -> None:
        assert load("serve", "a/b") == load("--model", "a/b") == load("serve", "--model", "a/b")

    @pytest.mark.parametrize("written", ["-5GB", "-5", "-.5GiB", "-1e3", "-inf", "- 5GB"])
    @pytest.mark.parametrize(
        ("flag", "expected"),
        [
            ("--park-memory", "0 or more bytes"),
            ("--kv-cache-memory", "1 or more bytes"),
            ("--drain-timeout-s", "0 or more seconds"),
            ("--keepalive-s", "more than 0 seconds"),
            ("--idle-timeout-s", "more than 0 seconds"),
            ("--max-queue", "a whole number of 1 or more"),
        ],
    )
    def test_a_negative_number_is_no_flag(self, flag: str, expected: str, written: str) -> None:
        told = refusal("--model", "x", flag, written)
        assert told.startswith(f"{flag} must be {expected}")
        assert told.endswith(f"not {written!r}")
        assert told == refusal("--model", "x", f"{flag}={written}")

    def test_a_negative_number_after_no_flag_that_takes_one_is_unknown(self) -> None:
        for argv in (["-5GB"], ["--dev-mode", "-5GB"], ["--park-memory", "5", "-5GB"]):
            assert "there is no option -5GB" in refusal("--model", "x", *argv)

    def test_the_inline_name_of_on_demand_loading_is_known(self) -> None:
        assert load("--enable-inline-model-loading").swap.on_demand

    def test_demo_serves_the_bundled_models_and_nothing_else(self) -> None:
        settings = load("demo", "--port", "1")
        assert settings == Settings(
            server=ServerConfig(port=1, dev_mode=True),
            swap=SwapRules(on_demand=True),
            catalog=CatalogConfig(
                model="hotswap/sums", models_dirs=(demo.MODELS_DIR,), scan_hub_cache=False
            ),
        )

    def test_the_demo_begins_with_any_model_that_is_on_the_disk(self, tmp_path: Path) -> None:
        own = tmp_path / "org" / "own"
        own.mkdir(parents=True)
        (own / "config.json").touch()
        for model in ("hotswap/tales", str(own)):
            assert load("demo", "--model", model).catalog.model == model
        beside = load("demo", "--models-dir", str(tmp_path), "--model", "org/own").catalog
        assert (beside.model, beside.models_dirs) == ("org/own", (tmp_path, demo.MODELS_DIR))

    @pytest.mark.parametrize("model", ["tales", "hotswap", "hotswap/talse", "Qwen/Qwen3-0.6B"])
    def test_the_demo_looks_for_no_model_on_the_hub(self, model: str) -> None:
        told = refusal("demo", "--model", model)
        assert told.startswith(f"the demo has no model {model!r}: it serves hotswap/sums and")
        assert f"`hotswap --model {model}`" in told
        with pytest.raises(ConfigError, match="the demo has no model"):
            load("demo", HOTSWAP_MODEL=model)

    def test_a_directory_without_a_model_is_none_for_the_demo(self, tmp_path: Path) -> None:
        places = (str(tmp_path), os.path.relpath(tmp_path))
        for place in places:
            assert refusal("demo", "--model", place).startswith("the demo has no model")
        (tmp_path / "config.json").touch()
        for place in places:
            assert load("demo", "--model", place).catalog.model == place

    def test_the_command_may_come_after_flags(self) -> None:
        assert load("--port", "1", "demo") == load("demo", "--port", "1")
        served = load("serve", "a/b", "--port", "1", "--api-key", "k")
        assert load("--port", "1", "serve", "--api-key", "k", "--dtype=auto", "a/b") == served

    def test_every_flag_reaches_its_place(self, tmp_path: Path) -> None:
        template = tmp_path / "chat.jinja"
        template.write_text("{{ messages }}")
        command = f"""--model m --served-model-name a b --models-dir {tmp_path}
            --models-dir {tmp_path} --enable-on-demand-loading --allow-download Qwen/* x/y
            --host ::1 --port 0 --api-key k1 k2 --admin-key a --dev-mode
            --cors-origins http://a http://b --keepalive-s 5 --drain-timeout-s 1m
            --swap-timeout-s 20 --max-queue 7 --patience-s 0 --max-wait-s 9
            --idle-timeout-s 1h --park-memory 8GiB --device cuda:1 --dtype bfloat16
            --max-model-len 4096 --max-num-seqs 8 --kv-cache-memory 500MB --no-mmap
            --chat-template {template} --trust-remote-code --log-level debug
            --log-format json"""
        assert load(*command.split()) == Settings(
            server=ServerConfig(
                host="::1",
                port=0,
                cors_origins=("http://a", "http://b"),
                api_keys=("k1", "k2"),
                admin_key="a",
                dev_mode=True,
                keepalive_s=5,
                log_level="debug",
                log_format="json",
            ),
            swap=SwapRules(
                on_demand=True,
                drain_timeout_s=60,
                swap_timeout_s=20,
                max_queue=7,
                patience_s=0,
                max_wait_s=9,
                idle_timeout_s=3600,
                park_memory=8 * 2**30,
            ),
            catalog=CatalogConfig(
                model="m",
                served_model_names=("a", "b"),
                models_dirs=(tmp_path, tmp_path),
                allow_download=("Qwen/*", "x/y"),
            ),
            engine=EngineConfig(
                device="cuda:1",
                dtype="bfloat16",
                no_mmap=True,
                max_model_len=4096,
                max_num_seqs=8,
                kv_cache_memory=500 * 10**6,
                chat_template="{{ messages }}",
                trust_remote_code=True,
            ),
        )

    @pytest.mark.parametrize(
        ("argv", "complaint"),
        [
            ("--modle x", "no option --modle. Did you mean --model?"),
            ("--MODEL x", "no option --MODEL. Did you mean --model?"),
            ("--model=x --prot=1", "no option --prot=1. Did you mean --port?"),
            ("--model", "--model: expected one argument"),
            ("--model x --port many", "--port must be a whole number from 0 to 65535, not 'many'"),
            ("--model x --port 65536", "--port must be a whole number from 0 to 65535"),
            ("--model x --dtype int8", "--dtype must be one of auto, float32"),
            ("--model x --device tpu", "--device must be auto, cpu, cuda"),
            ("--model x --max-queue 0", "--max-queue must be a whole number of 1 or more"),
            ("--model x --park-memory much", "--park-memory must be 0 or more bytes, such as"),
            ("--model x --idle-timeout-s 0", "--idle-timeout-s must be more than 0 seconds"),
            ("serv --model x", "no command 'serv'. Did you mean serve?"),
            ("serve x --model y", "two models are given"),
            ("serve x y", "unexpected argument 'y'"),
            ("demo x", "unexpected argument 'x'"),
            ("--model x --cors-origins foo", "each an origin such as http://localhost:3000, or *"),
            ("--model x --cors-origins http://a/", "each an origin such as"),
            ("--models-dir /nope", "--models-dir /nope: there is no such directory"),
            ("demo --model x --models-dir /nope", "--models-dir /nope: there is no such"),
            (
                f"--model x --models-dir {__file__}",
                f"--models-dir {__file__}: it is a file, not a directory",
            ),
            ("--model x --chat-template /nowhere.jinja", "cannot read the chat template"),
            ("--model x --config /nowhere.yaml", "cannot read /nowhere.yaml: No such file"),
            ("--served-model-name a --dev-mode", "--served-model-name needs --model"),
            ("--dev-mode --chat-template {{x}}", "--chat-template needs --model"),
            ("", "nothing to serve"),
        ],
    )
    def test_a_mistake_is_one_clear_line(self, argv: str, complaint: str) -> None:
        assert complaint in refusal(*argv.split())

    @pytest.mark.parametrize("flag", ["--api-key", "--admin-key", "--served-model-name"])
    def test_an_empty_value_is_called_so(self, flag: str) -> None:
        assert refusal("--model", "x", flag, "") == f"{flag} must not be empty"

    @pytest.mark.parametrize(
        "origin",
        ["*", "http://localhost:3000", "https://a.example", "http://[::1]:8000", "app://x"],
    )
    def test_pages_are_named_by_their_origin(self, origin: str) -> None:
        assert load("--model", "x", "--cors-origins", origin).server.cors_origins == (origin,)

    def test_a_key_is_never_repeated_in_a_complaint(self) -> None:
        assert "sesame" not in refusal("--model", "x", "--api-key", "open sesame")


class TestLayers:
    def test_a_flag_beats_the_environment_which_beats_the_file(self, tmp_path: Path) -> None:
        file = written(tmp_path, "model: from-file\nport: 1\nhost: 127.0.0.2\nmax-queue: 5\n")
        settings = load("--port", "3", HOTSWAP_CONFIG=file, HOTSWAP_PORT="2", HOTSWAP_HOST="::1")
        assert settings.server.port == 3
        assert settings.server.host == "::1"
        assert settings.swap.max_queue == 5
        assert settings.catalog.model == "from-file"

    def test_the_demo_serves_other_models_beside_its_own(self, tmp_path: Path) -> None:
        found = load("demo", "--models-dir", str(tmp_path)).catalog.models_dirs
        assert found == (tmp_path, demo.MODELS_DIR)

    def test_the_file_beats_the_demos_own_settings(self, tmp_path: Path) -> None:
        file = written(tmp_path, "dev_mode: false\n")
        assert not load("demo", "--config", file).server.dev_mode

    def test_the_environment_can_switch_off_what_the_file_switched_on(self, tmp_path: Path) -> None:
        file = written(tmp_path, "model: m\ndev_mode: true\n")
        assert not load("--config", file, HOTSWAP_DEV_MODE="0").server.dev_mode

    def test_the_environment_takes_lists_and_switches(self, tmp_path: Path) -> None:
        settings = load(
            HOTSWAP_MODELS_DIR=f"{tmp_path}:{tmp_path}",
            HOTSWAP_API_KEY="one, two",
            HOTSWAP_ENABLE_ON_DEMAND_LOADING="yes",
            HOTSWAP_KV_CACHE_MEMORY="1GiB",
            HOTSWAP_PORT="",
        )
        assert settings.catalog.models_dirs == (tmp_path, tmp_path)
        assert settings.server.api_keys == ("one", "two")
        assert settings.swap.on_demand
        assert settings.engine.kv_cache_memory == 2**30
        assert settings.server.port == 8000

    def test_a_wrong_variable_is_named(self) -> None:
        assert "HOTSWAP_PORT must be a whole" in refusal("--model", "x", HOTSWAP_PORT="http")
        assert "HOTSWAP_DEV_MODE must be true" in refusal("--model", "x", HOTSWAP_DEV_MODE="2")

    def test_a_variable_that_means_nothing_is_warned_about(self) -> None:
        environ = {"HOTSWAP_PROT": "5", "HOTSWAP_PORT": "6", "OTHER": "7", "HOTSWAP_FOO": "8"}
        assert warnings_about(load("--model", "x", **environ), environ) == (
            "HOTSWAP_FOO is ignored: there is no such setting.",
            "HOTSWAP_PROT is ignored: there is no such setting. Did you mean HOTSWAP_PORT?",
        )


class TestFile:
    def test_models_keep_their_settings(self, tmp_path: Path) -> None:
        (tmp_path / "t.jinja").write_text("{{ 1 }}")
        file = written(
            tmp_path,
            f"""
            model: a/b
            api-key: [k]
            models:
              a/b: {{aliases: [x], max_model_len: 9, sampling: {{temperature: 0}}}}
              local: {{path: /models/l, chat_template: {tmp_path}/t.jinja, ttl_s: 5m}}
              bare:
            """,
        )
        catalog = load("--config", file).catalog
        assert catalog.models == {
            "a/b": {"aliases": ["x"], "max_model_len": 9, "sampling": {"temperature": 0}},
            "local": {
                "path": "/models/l",
                "chat_template": "{{ 1 }}",
                "ttl_s": "5m",
            },
            "bare": {},
        }

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("modell: x", "there is no setting 'modell'. Did you mean model?"),
            ("config: x", "there is no setting 'config'"),
            ("port: '1'", "port must be a whole number from 0 to 65535, not '1'"),
            ("max-queue: true", "max-queue must be a whole number"),
            ("dev_mode: 1", "dev_mode must be true or false"),
            ("port: 1\n  x: 2", "cannot be read"),
            ("max-queue: 1\nmax_queue: 2", "max_queue is set twice"),
            ("models: [a]", "models must be a mapping"),
            ("models: {a: 1}", "models: a must be a mapping"),
            ("models: {a: {path: 1}}", "models: a: path must be"),
            ("models: {a: {max_len: 1}}", "models: a: There is no setting 'max_len'"),
            ("models: {a: {ttl_s: x}}", "models: a: ttl_s must be"),
            ("models: {a: {pin: 1}}", "models: a: pin must be true or false"),
            ("models: {a: {background: yes please}}", "models: a: background must be"),
            ("models: {current: }", "models: no model can be called 'current'"),
            ("models: {'': {path: /m}}", "models: no model can be called ''"),
            (
                "models: {a: {aliases: [x, default]}}",
                "aliases: no model can be called 'default'",
            ),
            ("models: {a: {aliases: current}}", "a: aliases: no model can be called 'current'"),
            ("models: {a: {aliases: ['']}}", "models: a: aliases must be"),
        ],
    )
    def test_a_mistake_names_the_file_and_the_key(
        self, tmp_path: Path, text: str, complaint: str
    ) -> None:
        file = written(tmp_path, text)
        message = refusal("--model", "x", "--config", file)
        assert complaint in message
        assert message.startswith(file)

    def test_one_alias_needs_no_list(self, tmp_path: Path) -> None:
        file = written(tmp_path, "models: {a: {aliases: gpt-4}}")
        assert load("--model", "a", "--config", file).catalog.models == {
            "a": {"aliases": ["gpt-4"]}
        }

    def test_a_served_name_that_means_any_model_is_refused(self, tmp_path: Path) -> None:
        for name in ("current", "default"):
            message = refusal("--model", "x", "--served-model-name", "mine", name)
            assert message.startswith(f"--served-model-name: no model can be called '{name}'")
            file = written(tmp_path, f"model: x\nserved-model-name: {name}")
            assert f"no model can be called '{name}'" in refusal("--config", file)
        assert "--served-model-name must not be empty" in refusal("--served-model-name", "")


class TestAccess:
    def test_an_open_address_without_a_key_is_warned_about(self) -> None:
        settings = load("--model", "x", "--host", "0.0.0.0")
        assert "--api-key" in "".join(warnings_about(settings))

    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "localhost", "LocalHost", "::1", "[::1]", "127.1.2.3"]
    )
    def test_a_loopback_address_needs_no_key(self, host: str) -> None:
        settings = load("--model", "x", "--host", host, "--dev-mode", "--allow-download", "*")
        assert not warnings_about(settings)

    @pytest.mark.parametrize("extra", [["--dev-mode"], ["--allow-download", "*"]])
    def test_an_open_address_is_refused_where_anybody_could_change_something(
        self, extra: list[str]
    ) -> None:
        argv = ["--model", "x", "--host", "0.0.0.0", *extra]
        assert "0.0.0.0" in refusal(*argv)
        assert not warnings_about(load(*argv, "--api-key", "k"))

    def test_a_server_without_a_model_may_be_filled_by_hand(self) -> None:
        assert load("--dev-mode").catalog.model is None
        assert load("--admin-key", "k").catalog.model is None

    def test_keys_are_not_in_the_printed_settings(self) -> None:
        settings = load("--model", "x", "--api-key", "sesame", "--admin-key", "abracadabra")
        assert "sesame" not in repr(settings)
        assert "abracadabra" not in repr(settings)


def test_the_table_shows_every_setting_with_its_default() -> None:
    table = settings_table()
    rows = table.splitlines()[2:]
    assert len(rows) == len(OPTIONS)
    assert "| `--port N` | 8000 | port to listen on; 0 takes a free one |" in rows
    assert all(row.count("|") - row.count("\\|") == 4 for row in rows)


def test_threads_sleep_while_they_wait_unless_somebody_decided_otherwise() -> None:
    others = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "TORCH_COMPILE_DISABLE": "1"}
    environ: dict[str, str] = {}
    settle_threads(environ)
    assert environ == {"GOMP_SPINCOUNT": "10000", **others}
    environ = {"OMP_WAIT_POLICY": "ACTIVE"}
    settle_threads(environ)
    assert environ == {"OMP_WAIT_POLICY": "ACTIVE", **others}
    chosen = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7", "TORCH_COMPILE_DISABLE": "0"}
    environ = dict(chosen)
    settle_threads(environ)
    assert environ == {"GOMP_SPINCOUNT": "10000", **chosen}


@pytest.mark.parametrize(
    ("soft", "hard", "settled"),
    [
        (1024, 1 << 20, 1 << 16),
        (1024, 4096, 4096),
        (1024, resource.RLIM_INFINITY, 1 << 16),
        (1 << 17, 1 << 20, 1 << 17),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ],
)
def test_as_many_files_may_be_open_as_the_system_allows_within_reason(
    soft: int, hard: int, settled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    settle_files()
    assert limits[-1] == (settled, hard)
