from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotswap.catalog import Catalog
from hotswap.config import CatalogConfig, ConfigError
from hotswap.contracts.models import AppliedSetting, EngineConfig, ModelSpec
from hotswap.contracts.progress import Report
from hotswap.errors import (
    DiskFull,
    DownloadFailed,
    HotswapError,
    HubUnavailable,
    InvalidRequest,
    ModelNotFound,
    ModelUnusable,
)
from hotswap.hub import CachedModel, Hub
from tests.model_files import CONFIG, WEIGHTS, sharded, write_cached, write_model

T = TypeVar("T")
MERE_NAME = {"background": True}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    path.mkdir()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def catalog(cache: Path, folder: Path) -> Callable[..., Catalog]:
    def build(
        *,
        hub: Hub | None = None,
        listing_age_s: float = 0.0,
        startup_places: Mapping[str, str] | None = None,
        **config: Any,
    ) -> Catalog:
        config = {"models_dirs": (folder,), **config}
        hub = hub or Hub(cache)
        return Catalog(CatalogConfig(**config), EngineConfig(), hub, listing_age_s, startup_places)

    return build


def wait(work: Callable[..., Awaitable[T]], *args: Any) -> T:
    return anyio.run(work, *args)


def ids(catalog: Catalog) -> list[str]:
    return [spec.id for spec in wait(catalog.models)]


def resolved(catalog: Catalog, name: str) -> ModelSpec:
    return wait(catalog.resolve, name)


class TestListing:
    def test_folders_at_depth_one_and_two_are_models(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "solo")
        write_model(folder / "org" / "b")
        write_model(folder / "org" / "a")
        write_model(folder / "x" / "y" / "too-deep")
        write_model(folder / ".hidden")
        assert ids(catalog()) == ["org/a", "org/b", "solo"]

    def test_the_hub_cache_lists_each_repository_once(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_cached(cache, "org/m", "b" * 40)
        write_cached(cache, "org/m", "a" * 40, ref=None)
        write_cached(cache, "legacy")
        (cache / "datasets--org--d").mkdir()
        (cache / "models--org--empty").mkdir()
        (cache / "version.txt").write_text("1")
        assert ids(catalog()) == ["legacy", "org/m"]
        path = resolved(catalog(), "org/m").path
        assert path is not None
        assert path.name == "b" * 40

    def test_without_a_main_branch_the_newest_snapshot_counts(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_cached(cache, "org/m", ref=None)
        assert ids(catalog()) == ["org/m"]

    def test_a_branch_that_is_a_pipe_names_no_snapshot(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        newest = write_cached(cache, "org/m", ref=None)
        (cache / "models--org--m" / "refs").mkdir()
        os.mkfifo(cache / "models--org--m" / "refs" / "main")
        assert resolved(catalog(), "org/m").path == newest

    def test_what_is_no_chat_model_is_left_out_and_says_why_when_asked_for(
        self, cache: Path, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "bert", config={"architectures": ["BertForMaskedLM"]})
        write_model(folder / "broken", config="{")
        write_cached(
            cache, "org/half", files=sharded("1.safetensors"), without=("model.safetensors",)
        )
        assert ids(catalog()) == []
        for name in ("bert", "broken", "org/half"):
            with pytest.raises(ModelUnusable, match=f"^'{name}' cannot be served: ") as raised:
                resolved(catalog(), name)
            assert raised.value.model == name

    def test_an_embedding_model_is_one_for_another_task(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "bert", config={"architectures": ["BertModel"]})
        write_model(folder / "chat")
        tasks = {name: resolved(catalog(), name).task for name in ("bert", "chat")}
        assert tasks == {"bert": "embed", "chat": "generate"}

    def test_the_start_up_model_comes_first(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "a")
        write_model(folder / "z")
        assert ids(catalog(model="z")) == ["z", "a"]

    def test_a_directory_of_two_names_is_one_model(
        self, tmp_path: Path, cache: Path, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        snapshot = write_cached(cache, "org/m")
        (folder / "link").symlink_to(snapshot)
        write_model(folder / "real")
        (folder / "zlink").symlink_to(folder / "real")
        specs = wait(catalog().models)
        assert [(spec.id, spec.aliases) for spec in specs] == [
            ("link", ("org/m",)),
            ("real", ("zlink",)),
        ]
        assert resolved(catalog(), "org/m").id == "link"

    def test_of_two_models_of_one_name_the_first_counts(
        self, tmp_path: Path, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        other = tmp_path / "other"
        write_model(folder / "m")
        write_model(other / "m")
        both = catalog(models_dirs=(folder, other))
        assert ids(both) == ["m"]
        assert resolved(both, "m").path == folder / "m"

    def test_models_come_and_go_while_running(
        self, folder: Path, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        running = catalog()
        assert ids(running) == []
        path = write_model(folder / "m", without=("tokenizer.json",))
        assert ids(running) == []
        (path / "tokenizer.json").write_text("{}")
        assert ids(running) == ["m"]
        write_cached(cache, "org/m")
        assert ids(running) == ["m", "org/m"]
        (path / "config.json").unlink()
        assert ids(running) == ["org/m"]

    def test_a_listing_is_looked_up_again_once_it_is_old(
        self, folder: Path, catalog: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr("hotswap.catalog.time.monotonic", lambda: now[0])
        running = catalog(listing_age_s=0.1)
        assert ids(running) == []
        write_model(folder / "m")
        now[0] += 0.09
        assert ids(running) == []
        now[0] += 0.02
        assert ids(running) == ["m"]

    def test_all_who_ask_for_an_old_listing_share_one_look(
        self, cache: Path, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        class Counted(Hub):
            looks = 0

            def cached_models(self) -> tuple[CachedModel, ...]:
                self.looks += 1
                return super().cached_models()

        write_model(folder / "m")
        hub = Counted(cache)
        running = catalog(hub=hub, listing_age_s=3600)

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(16):
                    tasks.start_soon(running.models)

        wait(main)
        assert ids(running) == ["m"]
        assert hub.looks == 1

    def test_a_name_asked_for_is_found_at_once_and_listed_from_then_on(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        running = catalog(listing_age_s=3600)
        write_model(folder / "a")
        assert ids(running) == ["a"]
        write_model(folder / "m")
        assert resolved(running, "m").id == "m"
        assert ids(running) == ["a", "m"]

    def test_a_cache_or_folder_that_is_not_there_holds_nothing(
        self, tmp_path: Path, catalog: Callable[..., Catalog]
    ) -> None:
        gone = tmp_path / "gone"
        assert ids(catalog(models_dirs=(gone,), hub=Hub(gone))) == []


class TestDirectoriesWithoutAModel:
    def test_each_is_told_once_and_again_when_something_else_is_wrong(
        self, folder: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write_model(folder / "org" / "m", config="{")
        write_model(folder / "fine")
        running = catalog()

        def told() -> list[str]:
            return [record.getMessage() for record in caplog.records]

        for _ in range(2):
            assert ids(running) == ["fine"]
        fault = "'org/m' cannot be served: config.json is not JSON."
        assert told() == [fault]
        assert running.unusable() == {"org/m": fault}
        write_model(path, files={"pytorch_model.bin": "x"}, without=("model.safetensors",))
        (path / "model.safetensors").unlink()
        assert ids(running) == ids(running) == ["fine"]
        pickles = "it has no safetensors weights, only pickles, which are not read."
        assert told() == [fault, f"'org/m' cannot be served: {pickles}"]
        (path / "model.safetensors").write_text(WEIGHTS)
        assert ids(running) == ["fine", "org/m"]
        assert running.unusable() == {}
        (path / "config.json").write_text("{")
        assert ids(running) == ["fine"]
        assert told()[2:] == [fault]

    def test_what_is_known_is_told_while_the_disk_does_not_answer(
        self, folder: Path, catalog: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_model(folder / "m", config="{")
        running = catalog()
        assert ids(running) == []
        asked, answers = threading.Event(), threading.Event()

        def hanging(folder: str) -> list[str]:
            asked.set()
            answers.wait(10)
            return []

        monkeypatch.setattr("hotswap.catalog._visible", hanging)

        async def scenario() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(running.models)
                await anyio.to_thread.run_sync(asked.wait)
                told = running.unusable()
                answers.set()
            assert told == {"m": "'m' cannot be served: config.json is not JSON."}

        anyio.run(scenario)
        assert running.unusable() == {}

    def test_the_hubs_cache_is_not_ours_to_complain_of(
        self, cache: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        write_cached(cache, "org/speech", config={"architectures": ["WhisperModel"]})
        running = catalog()
        assert ids(running) == []
        assert running.unusable() == {}
        assert not caplog.records
        with pytest.raises(ModelUnusable, match="'WhisperModel' is not a chat model"):
            resolved(running, "org/speech")

    def test_one_is_known_by_its_path_and_its_aliases_too(
        self, folder: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write_model(folder / "m", without=("tokenizer.json",))
        running = catalog(models={"m": {"aliases": ["mine"]}})
        for name in (str(path), "mine", "m"):
            with pytest.raises(ModelUnusable, match="'m' cannot be served: its tokenizer"):
                resolved(running, name)
        assert len(caplog.records) == 1, "and not that there is no such model"

    def test_a_model_elsewhere_that_has_its_name_is_the_one_that_is_meant(
        self,
        tmp_path: Path,
        folder: Path,
        catalog: Callable[..., Catalog],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        other = tmp_path / "other"
        write_model(folder / "m", config="{")
        write_model(other / "m")
        both = catalog(models_dirs=(folder, other))
        assert resolved(both, "m").path == other / "m"
        assert both.unusable() == {}
        assert not caplog.records

    def test_one_that_may_be_fetched_is_fetched(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_cached(cache, "org/half", without=("model.safetensors",))
        spec = resolved(catalog(allow_download=("org/*",)), "org/half")
        assert (spec.path, spec.fault) == (None, None)

    @pytest.mark.parametrize("depth", ["m", "org/m"])
    @pytest.mark.parametrize("target", ["config.json", "nowhere"])
    def test_a_configuration_that_is_a_link_to_nothing_is_told(
        self,
        folder: Path,
        catalog: Callable[..., Catalog],
        caplog: pytest.LogCaptureFixture,
        depth: str,
        target: str,
    ) -> None:
        path = write_model(folder / depth, without=("config.json",))
        (path / "config.json").symlink_to(target)
        running = catalog()
        assert ids(running) == []
        with pytest.raises(ModelUnusable, match=r"config\.json (cannot be read|is missing)"):
            resolved(running, depth)
        assert list(running.unusable()) == [depth]
        assert len(caplog.records) == 1

    def test_a_pipe_holds_up_nobody(
        self, folder: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        write_model(folder / "good")
        for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
            path = write_model(folder / name, without=(name,))
            os.mkfifo(path / name)
        os.mkfifo(write_model(folder / "settings") / "hotswap_config.yaml")
        running = catalog()
        assert ids(running) == ["good", "settings"]
        assert len(running.unusable()) == len(caplog.records) == 4
        for name, fault in running.unusable().items():
            assert "is not a regular file." in fault
            with pytest.raises(ModelUnusable):
                resolved(running, name)
        (folder / "settings" / "hotswap_config.yaml").unlink()
        assert resolved(running, "settings").fault is None

    def test_that_of_the_start_up_model_is_told_by_whoever_refuses_to_start(
        self, folder: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        write_model(folder / "m", config="{")
        started = catalog(model="m")
        with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
            wait(started.startup_spec)
        assert not caplog.records

    def test_no_name_of_a_file_can_forge_a_line_in_the_log(
        self, folder: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        write_model(folder / "a\nb\x1b", config={"architectures": ["c\nd\x1b"]})
        assert ids(catalog()) == []
        assert [record.getMessage().isprintable() for record in caplog.records] == [True]


class TestNames:
    def test_a_path_of_a_known_model_means_it(
        self, tmp_path: Path, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "m")
        (tmp_path / "elsewhere").symlink_to(folder / "m")
        for name in (str(folder / "m"), f"{folder}/m/", str(tmp_path / "elsewhere")):
            assert resolved(catalog(), name).id == "m"

    def test_a_path_of_an_unknown_model_means_nothing(
        self, tmp_path: Path, catalog: Callable[..., Catalog]
    ) -> None:
        path = write_model(tmp_path / "secret")
        with pytest.raises(ModelNotFound):
            resolved(catalog(), str(path))

    @pytest.mark.parametrize(
        "name",
        ["nope", "M", "m ", "../m", "a\0b", "/a\0b", "\udc80", "~nobody/m", "x" * 10_000, "a@b@c"],
    )
    def test_any_other_name_is_not_found(
        self, folder: Path, catalog: Callable[..., Catalog], name: str
    ) -> None:
        write_model(folder / "m")
        with pytest.raises(ModelNotFound) as raised:
            resolved(catalog(), name)
        assert len(raised.value.message) < 2000

    @given(name=st.text() | st.from_regex(r"\A[\w.~/@-]{0,12}\Z"))
    def test_whatever_the_name_the_answer_is_a_model_or_that_there_is_none(
        self, tmp_path_factory: pytest.TempPathFactory, name: str
    ) -> None:
        root = tmp_path_factory.getbasetemp() / "named"
        write_model(root / "m")
        config = CatalogConfig(models_dirs=(root,), allow_download=("*",))
        spec = None
        with contextlib.suppress(ModelNotFound):
            spec = resolved(Catalog(config, EngineConfig(), Hub(root / "none")), name)
        assert spec is None or name == spec.id

    def test_a_near_miss_is_told_what_is_near(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "org" / "Qwen3-0.6B")
        with pytest.raises(ModelNotFound, match=r"Did you mean org/Qwen3-0\.6B"):
            resolved(catalog(), "org/Qwen3-0.5B")

    def test_what_shares_only_the_organisation_is_not_near(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "hotswap" / "sums")
        with pytest.raises(ModelNotFound, match=r"does not exist\.$") as raised:
            resolved(catalog(), "hotswap/foo")
        assert raised.value.hint == ""

    def test_an_unknown_name_is_near_to_the_last_part_of_another(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "hotswap" / "sums")
        for name in ("sums", "sms", "somebody/sums"):
            with pytest.raises(ModelNotFound, match=r"Did you mean hotswap/sums\?"):
                resolved(catalog(), name)

    @pytest.mark.parametrize("name", ["llama:latest", "llama:8b", "Llama:8b-instruct-q4_K_M"])
    def test_a_tag_is_no_part_of_a_name(
        self, folder: Path, catalog: Callable[..., Catalog], name: str
    ) -> None:
        write_model(folder / "llama")
        with pytest.raises(ModelNotFound, match=r"Did you mean llama\?"):
            resolved(catalog(), name)

    def test_a_name_that_differs_only_in_its_capitals_is_near(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "MistralAI" / "M7")
        write_model(folder / "MistralAI" / "M8")
        for name in ("mistralai/m7", "MISTRALAI/M7", "m7"):
            with pytest.raises(ModelNotFound, match=r"Did you mean MistralAI/M7\?"):
                resolved(catalog(), name)

    def test_a_revision_is_a_branch_a_tag_or_a_commit(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_cached(cache, "org/m", "a" * 40)
        old = write_cached(cache, "org/m", "b" * 40, ref="v1")
        for name in ("org/m@main", "org/m@" + "a" * 40, "org/m@aaaaaaa"):
            assert resolved(catalog(), name).id == "org/m"
        for revision in ("v1", "b" * 40, "bbbbbbb"):
            spec = resolved(catalog(), f"org/m@{revision}")
            assert (spec.id, spec.path) == (f"org/m@{revision}", old)
        assert ids(catalog()) == ["org/m"]

    @pytest.mark.parametrize(
        "revision", ["v2", "aaaaaa", "../../x", "/etc", "..", "", "a" * 300, "a\0b"]
    )
    def test_a_revision_that_is_not_here_is_not_found(
        self, cache: Path, catalog: Callable[..., Catalog], revision: str
    ) -> None:
        write_cached(cache, "org/m", "a" * 40)
        with pytest.raises(ModelNotFound):
            resolved(catalog(), f"org/m@{revision}")

    def test_an_edited_model_is_seen_by_the_next_request(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "m")
        running = catalog()
        assert resolved(running, "m").engine.max_model_len is None
        (folder / "m" / "hotswap_config.yaml").write_text("max_model_len: 7")
        assert resolved(running, "m").engine.max_model_len == 7

    def test_a_new_commit_on_main_is_seen_by_the_next_request(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_cached(cache, "org/m", "a" * 40)
        running = catalog()
        resolved(running, "org/m")
        new = write_cached(cache, "org/m", "b" * 40)
        assert resolved(running, "org/m").path == new


class TestStartUpModel:
    def test_a_directory_is_known_by_its_name_and_its_path(
        self, tmp_path: Path, catalog: Callable[..., Catalog]
    ) -> None:
        path = write_model(tmp_path / "mine")
        started = catalog(model=str(path))
        assert started.startup == "mine"
        spec = wait(started.startup_spec)
        assert spec is not None
        assert (spec.id, spec.path, spec.aliases) == ("mine", path, ())
        assert resolved(started, str(path)) == spec

    def test_a_relative_directory_goes_by_the_name_it_was_given(
        self, tmp_path: Path, catalog: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_model(tmp_path / "Qwen" / "m")
        monkeypatch.chdir(tmp_path)
        spec = wait(catalog(model="Qwen/m").startup_spec)
        assert spec is not None
        assert (spec.id, spec.path) == ("Qwen/m", Path("Qwen/m"))

    def test_served_names_replace_its_own_which_still_means_it(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_cached(cache, "org/m")
        started = catalog(model="org/m", served_model_names=("one", "two"))
        specs = wait(started.models)
        assert [(spec.id, spec.aliases) for spec in specs] == [("one", ("two", "org/m"))]
        for name in ("one", "two", "org/m", "org/m@main"):
            assert resolved(started, name).id == "one"

    def test_a_model_of_a_models_dir_needs_no_hub(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        path = write_model(folder / "hotswap" / "sums")
        spec = wait(catalog(model="hotswap/sums").startup_spec)
        assert spec is not None
        assert spec.path == path

    def test_a_repository_that_is_not_here_is_to_be_downloaded(
        self, catalog: Callable[..., Catalog]
    ) -> None:
        started = catalog(model="org/m@v1")
        spec = wait(started.startup_spec)
        assert spec is not None
        assert (spec.id, spec.path, spec.revision) == ("org/m@v1", None, "v1")
        assert ids(started) == ["org/m@v1"]

    def test_a_half_downloaded_repository_is_to_be_downloaded(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_cached(cache, "org/m", without=("model.safetensors",))
        spec = wait(catalog(model="org/m").startup_spec)
        assert spec is not None
        assert spec.path is None

    @pytest.mark.parametrize("name", ["bad/empty", "./bad/empty"])
    def test_a_directory_without_a_model_says_what_is_missing(
        self,
        tmp_path: Path,
        catalog: Callable[..., Catalog],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        (tmp_path / "bad" / "empty").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=r"config\.json is missing"):
            wait(catalog(model=name).startup_spec)

    @pytest.mark.parametrize("name", ["t3.py", "./t3.py"])
    def test_a_file_is_no_model(
        self,
        tmp_path: Path,
        catalog: Callable[..., Catalog],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        (tmp_path / "t3.py").touch()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match="it is a file, not a directory"):
            wait(catalog(model=name).startup_spec)

    @pytest.mark.parametrize("name", ["a/b/c", "a b", "not a repo !!"])
    def test_what_is_no_name_at_all_says_so(
        self, catalog: Callable[..., Catalog], name: str
    ) -> None:
        with pytest.raises(ConfigError, match="neither a directory nor a repository id"):
            wait(catalog(model=name).startup_spec)

    @pytest.mark.parametrize("name", ["/nowhere/m", "./m", "~/nowhere/m"])
    def test_a_directory_that_is_not_there_is_one_clear_line(
        self, catalog: Callable[..., Catalog], name: str
    ) -> None:
        with pytest.raises(ConfigError, match="there is no such directory") as raised:
            wait(catalog(model=name).startup_spec)
        assert str(raised.value).startswith(f"--model {name}: ")

    @pytest.mark.parametrize("typed", [True, False])
    def test_one_whose_directory_vanishes_is_not_looked_for_on_the_hub(
        self,
        tmp_path: Path,
        catalog: Callable[..., Catalog],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        typed: bool,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        parent = tmp_path if typed else tmp_path / "models"
        path = write_model(parent / "ok2" / "tales")
        hub = SlowHub(tmp_path / "cache")
        running = catalog(model="ok2/tales", hub=hub)
        spec = wait(running.startup_spec)
        assert spec is not None
        path.rename(tmp_path / "away")
        reread = catalog(model="ok2/tales", hub=hub, startup_places=running.startup_places)
        for one in (running, running, reread):
            with pytest.raises(ModelUnusable, match="cannot be served: its directory is gone"):
                resolved(one, "ok2/tales")
            assert list(one.unusable()) == ["ok2/tales"]
        assert len(caplog.records) == 1
        with pytest.raises(ModelNotFound):
            wait(running.fetch, spec, lambda stage, value: None)
        assert hub.asked == []
        (tmp_path / "away").rename(path)
        assert resolved(running, "ok2/tales").path == spec.path
        assert resolved(reread, "ok2/tales").path == spec.path

    def test_another_name_for_it_may_be_a_repository_again(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "ok2" / "tales")
        running = catalog(model="ok2/tales")
        wait(running.startup_spec)
        other = catalog(model="org/m", startup_places=running.startup_places)
        assert resolved(other, "org/m").path is None

    def test_a_repository_that_vanishes_from_the_cache_is_to_be_downloaded_again(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_cached(cache, "org/m")
        running = catalog(model="org/m")
        spec = wait(running.startup_spec)
        assert spec is not None
        assert spec.path is not None
        (cache / "models--org--m").rename(cache / "away")
        assert resolved(running, "org/m").path is None

    def test_a_directory_of_something_else_says_so(
        self, tmp_path: Path, catalog: Callable[..., Catalog]
    ) -> None:
        path = write_model(tmp_path / "bert", config={"architectures": ["BertForMaskedLM"]})
        with pytest.raises(ConfigError, match="'BertForMaskedLM' is not a chat model"):
            wait(catalog(model=str(path)).startup_spec)

    def test_a_revision_beside_the_main_branch_is_listed_too(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_cached(cache, "org/m", "a" * 40)
        old = write_cached(cache, "org/m", "b" * 40, ref="v1")
        for name in ("org/m@v1", "org/m@" + "b" * 40):
            started = catalog(model=name)
            assert ids(started) == [name, "org/m"]
            assert next(iter(wait(started.models))).path == old

    def test_there_may_be_none(self, catalog: Callable[..., Catalog]) -> None:
        assert catalog().startup is None
        assert wait(catalog().startup_spec) is None


class TestSettings:
    def test_layers_are_laid_over_the_flags(
        self, folder: Path, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        text = "max_model_len: 10\nmax_num_seqs: 2\nsampling: {temperature: 0.5, top_k: 3}\n"
        write_model(folder / "m", files={"hotswap_config.yaml": text})
        entry = {"max_num_seqs": 3, "sampling": {"top_k": 4}, "aliases": ["x"], "ttl_s": 5}
        config = CatalogConfig(models_dirs=(folder,), models={"m": entry})
        flags = EngineConfig(max_model_len=1, max_num_seqs=1, dtype="float32")
        layered = Catalog(config, flags, Hub(cache))
        spec = resolved(layered, "x")
        assert (spec.id, spec.aliases, spec.ttl_s) == ("m", ("x",), 5)
        assert spec.engine == EngineConfig(max_model_len=10, max_num_seqs=3, dtype="float32")
        assert (spec.sampling.temperature, spec.sampling.top_k) == (0.5, 4)
        assert spec.applied["max_model_len"] == AppliedSetting(10, "model_dir")
        assert spec.applied["max_num_seqs"] == AppliedSetting(3, "config_file")

    def test_flags_that_fit_the_start_up_model_do_not_harm_the_others(
        self, folder: Path, cache: Path
    ) -> None:
        write_model(folder / "big", config={**CONFIG, "max_position_embeddings": 4096})
        write_model(folder / "small")
        config = CatalogConfig(models_dirs=(folder,), model="big", served_model_names=("first",))
        flags = EngineConfig(max_model_len=2048, chat_template="{{ big }}", dtype="float32")
        running = Catalog(config, flags, Hub(cache))
        assert resolved(running, "big").engine == flags
        assert resolved(running, "small").engine == EngineConfig(max_model_len=512, dtype="float32")

    def test_each_load_starts_afresh(self, folder: Path, catalog: Callable[..., Catalog]) -> None:
        write_model(folder / "m")
        running = catalog()
        before = resolved(running, "m")
        changed = running.override(before, {"max_model_len": 9}, "request")
        assert changed.engine.max_model_len == 9
        assert resolved(running, "m") == before

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("max_modle_len: 1", r" in hotswap_config\.yaml: There is no setting 'max_modle_len'"),
            ("trust_remote_code: true", r" in hotswap_config\.yaml: trust_remote_code cannot be"),
            ("- a", r": hotswap_config\.yaml must be a mapping"),
        ],
    )
    def test_a_mistake_in_a_models_own_settings_concerns_only_its_load(
        self,
        folder: Path,
        catalog: Callable[..., Catalog],
        caplog: pytest.LogCaptureFixture,
        text: str,
        problem: str,
    ) -> None:
        write_model(folder / "m", files={"hotswap_config.yaml": text})
        running = catalog()
        with pytest.raises(ModelUnusable, match=f"^'m' has wrong settings{problem}") as raised:
            resolved(running, "m")
        fault = raised.value.message
        assert [(spec.id, spec.fault) for spec in wait(running.models)] == [("m", fault)]
        assert running.unusable() == {"m": fault}
        assert [record.getMessage() for record in caplog.records] == [fault]
        (folder / "m" / "hotswap_config.yaml").write_text("max_model_len: 7")
        assert resolved(running, "m").fault is None

    def test_a_config_file_that_asks_too_much_of_a_model_concerns_only_its_load(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "m")
        running = catalog(models={"m": {"max_model_len": 513}})
        [listed] = wait(running.models)
        assert (listed.id, listed.engine.max_model_len) == ("m", None)
        with pytest.raises(ModelUnusable, match="max_model_len 513 is more than the 512") as raised:
            resolved(running, "m")
        assert listed.fault == raised.value.message
        assert "in `models:` of the config file" in listed.fault

    def test_an_override_is_checked(self, folder: Path, catalog: Callable[..., Catalog]) -> None:
        write_model(folder / "m")
        running = catalog()
        with pytest.raises(InvalidRequest):
            running.override(resolved(running, "m"), {"device": "cpu"}, "request")

    def test_the_config_file_adds_models(
        self, tmp_path: Path, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        path = write_model(tmp_path / "mine")
        other = write_model(tmp_path / "other")
        write_cached(cache, "org/m", ref="v1")
        models: dict[str, dict[str, Any]] = {
            "named": {"path": str(path), "ttl_s": 60},
            str(other): {},
            "pinned-down": {"path": "org/m@v1"},
            "org/absent": {},
        }
        added = catalog(models=models, scan_hub_cache=False)
        assert ids(added) == ["named", "other", "pinned-down"]
        assert resolved(added, "named").ttl_s == 60
        assert resolved(added, str(path)).id == "named"

    def test_a_background_name_needs_no_files(
        self, folder: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        write_model(folder / "small")
        running = catalog(
            models={
                "tasks": {"background": True, "aliases": ["titles"]},
                "small": {"background": True, "pin": True},
            }
        )
        assert ids(running) == ["small", "tasks"]
        tasks, small = resolved(running, "titles"), resolved(running, "small")
        assert (tasks.id, tasks.path, tasks.background) == ("tasks", None, True)
        assert (small.path, small.background, small.pin) == (folder / "small", True, True)
        assert not caplog.records

    def test_settings_that_a_background_name_cannot_have_are_warned_about_once(
        self, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        running = catalog(models={"tasks": {"background": True, "ttl_s": 5, "max_num_seqs": 3}})
        assert ids(running) == ids(running) == ["tasks"]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "max_num_seqs, ttl_s has no effect" in caplog.text

    def test_a_background_model_whose_files_are_missing_is_no_mere_name(
        self, tmp_path: Path, catalog: Callable[..., Catalog]
    ) -> None:
        absent = str(tmp_path / "absent")
        models = {"m": {"background": True, "path": absent}, absent: {"background": True}}
        assert ids(catalog(models=models)) == []

    def test_a_background_name_is_found_without_looking_at_the_disk(
        self, folder: Path, catalog: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        running = catalog(models={"tasks": {"background": True}})
        assert resolved(running, "tasks").background
        monkeypatch.setattr(running, "_look_around", lambda: pytest.fail("it looked"))
        assert resolved(running, "tasks").background

    def test_settings_for_a_model_that_is_not_here_are_warned_about_once(
        self, folder: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        running = catalog(models={"later": {"max_model_len": 3}})
        assert ids(running) == ids(running) == []
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        write_model(folder / "later")
        assert resolved(running, "later").engine.max_model_len == 3


class TestAliases:
    def test_a_models_own_name_comes_before_an_alias_of_another_one(
        self, folder: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        write_model(folder / "a")
        write_model(folder / "b")
        running = catalog(models={"a": {"aliases": ["b", "tasks", "x"]}, "tasks": MERE_NAME})
        for name in ("b", "tasks"):
            assert resolved(running, name).id == name
        assert resolved(running, "x").id == "a"
        aliases = {spec.id: spec.aliases for spec in wait(running.models)}
        assert aliases == {"a": ("x",), "b": (), "tasks": ()}
        assert [record.getMessage() for record in caplog.records] == [
            "the alias 'b' of 'a' is left out: it is the name of 'b'",
            "the alias 'tasks' of 'a' is left out: it is the name of 'tasks'",
        ]

    def test_a_served_name_does_not_hide_another_model(
        self, tmp_path: Path, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "b")
        started = catalog(
            model=str(write_model(tmp_path / "a")), served_model_names=("one", "b", "two")
        )
        assert [(spec.id, spec.aliases) for spec in wait(started.models)] == [
            ("one", ("two",)),
            ("b", ()),
        ]
        assert resolved(started, "b").path == folder / "b"

    def test_the_first_served_name_is_the_start_up_models_and_hides_another_one_aloud(
        self,
        tmp_path: Path,
        folder: Path,
        catalog: Callable[..., Catalog],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        path = write_model(tmp_path / "a")
        write_model(folder / "b")
        started = catalog(model=str(path), served_model_names=("b",))
        assert resolved(started, "b").path == path
        assert [record.getMessage() for record in caplog.records] == [
            "--served-model-name b is also the name of another model, which cannot be asked for"
        ]

    def test_of_two_models_with_one_alias_the_first_has_it(
        self, folder: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("a", "z"):
            write_model(folder / name)
        running = catalog(models={"z": {"aliases": ["x", "y"]}, "a": {"aliases": ["x"]}})
        assert [resolved(running, name).id for name in ("x", "y")] == ["z", "z"]
        assert resolved(running, "a").aliases == ()
        assert [record.getMessage() for record in caplog.records] == [
            "the alias 'x' of 'a' is left out: it is the alias of 'z'"
        ]

    def test_a_model_that_comes_takes_its_name_from_whose_alias_it_was(
        self, folder: Path, catalog: Callable[..., Catalog]
    ) -> None:
        write_model(folder / "a")
        running = catalog(models={"a": {"aliases": ["b"]}})
        assert resolved(running, "b").id == "a"
        write_model(folder / "b")
        assert ids(running) == ["a", "b"]
        assert resolved(running, "b").id == "b"

    def test_settings_of_two_names_of_one_model_add_up_their_aliases(
        self, folder: Path, catalog: Callable[..., Catalog], caplog: pytest.LogCaptureFixture
    ) -> None:
        write_model(folder / "a")
        running = catalog(models={"a": {"aliases": ["x"]}, "x": {"aliases": ["a", "x", "y"]}})
        assert resolved(running, "y").aliases == ("x", "y")
        assert not caplog.records

    @pytest.mark.parametrize("name", ["default", "current"])
    def test_a_model_that_has_a_name_for_any_model_is_warned_about(
        self,
        name: str,
        folder: Path,
        catalog: Callable[..., Catalog],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        write_model(folder / name)
        running = catalog()
        assert ids(running) == ids(running) == [name]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert repr(name) in caplog.text


class SlowHub(Hub):
    """Downloads by copying, and reports two readings."""

    def __init__(self, cache: Path) -> None:
        super().__init__(cache)
        self.asked: list[tuple[str, str | None]] = []
        self.left = threading.Event()
        self.stalls = False

    def download(
        self, repo_id: str, revision: str | None, report: Report, cancelled: threading.Event
    ) -> Path:
        self.asked.append((repo_id, revision))
        report("downloading", 0.5)
        if self.stalls:
            cancelled.wait()
            self.left.set()
            raise DownloadFailed("cancelled")
        report("downloading", 1.0)
        files = {"hotswap_config.yaml": "max_num_seqs: 5\nmax_model_len: 5"}
        return write_cached(self.cache_dir, repo_id, ref=revision or "main", files=files)


class TestDownloads:
    def test_only_what_a_glob_allows_may_be_fetched(self, catalog: Callable[..., Catalog]) -> None:
        open_to = catalog(allow_download=("Qwen/*", "x/y"))
        for name in ("Qwen/a", "Qwen/a@v1", "x/y"):
            spec = resolved(open_to, name)
            assert (spec.id, spec.path) == (name, None)
        for name in ("qwen/a", "x/z", "y", "Qwen/../x", "Qwen/a/b", "Qwen/"):
            with pytest.raises(ModelNotFound):
                resolved(open_to, name)
        assert ids(open_to) == []

    def test_a_downloaded_model_brings_its_own_settings_below_the_requests(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        hub = SlowHub(cache)
        open_to = catalog(allow_download=("*",), hub=hub, scan_hub_cache=False)
        readings: list[tuple[str, float]] = []

        async def scenario() -> ModelSpec:
            spec = await open_to.resolve("org/m@v1")
            spec = open_to.override(spec, {"max_model_len": 9}, "request")
            return await open_to.fetch(spec, lambda *reading: readings.append(reading))

        spec = anyio.run(scenario)
        assert hub.asked == [("org/m", "v1")]
        assert spec.path is not None
        assert (spec.engine.max_model_len, spec.engine.max_num_seqs) == (9, 5)
        assert spec.applied["max_model_len"].source == "request"
        assert readings == [("downloading", 0.5), ("downloading", 1.0)]
        assert resolved(open_to, "org/m@v1").path == spec.path

    def test_the_start_up_model_is_fetched_whatever_name_it_serves_under(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        hub = SlowHub(cache)
        started = catalog(model="org/m", served_model_names=("mine",), hub=hub)

        async def scenario() -> ModelSpec:
            return await started.fetch(await started.resolve("mine"), lambda *_: None)

        spec = anyio.run(scenario)
        assert (spec.id, spec.aliases, hub.asked) == ("mine", ("org/m",), [("org/m", None)])

    @pytest.mark.parametrize(
        "error",
        [
            HubUnavailable("Cannot reach the Hub."),
            ModelNotFound("There is no model lama on the Hub."),
            DownloadFailed("HF_HUB_OFFLINE is set."),
            DiskFull("The disk is full."),
        ],
    )
    def test_what_cannot_be_fetched_may_be_a_slip_for_what_is_here(
        self,
        cache: Path,
        folder: Path,
        catalog: Callable[..., Catalog],
        monkeypatch: pytest.MonkeyPatch,
        error: HotswapError,
    ) -> None:
        def refuse(*_: object) -> Path:
            raise error

        write_model(folder / "llama")
        hub = SlowHub(cache)
        monkeypatch.setattr(hub, "download", refuse)
        started = catalog(model="lama", hub=hub)

        async def scenario() -> None:
            await started.fetch(await started.resolve("lama"), lambda *_: None)

        with pytest.raises(type(error)) as raised:
            anyio.run(scenario)
        hint = "" if isinstance(error, DiskFull) else " Did you mean llama?"
        assert raised.value.message == error.message + hint

    def test_a_download_that_nobody_wants_any_more_is_stopped(
        self, cache: Path, catalog: Callable[..., Catalog]
    ) -> None:
        hub = SlowHub(cache)
        hub.stalls = True
        open_to = catalog(allow_download=("*",), hub=hub)

        async def scenario() -> bool:
            begun = anyio.Event()
            spec = await open_to.resolve("org/m")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(open_to.fetch, spec, lambda *_: begun.set())
                await begun.wait()
                tasks.cancel_scope.cancel()
            return await anyio.to_thread.run_sync(hub.left.wait, 5)

        assert anyio.run(scenario)
