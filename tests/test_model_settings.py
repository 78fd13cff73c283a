from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hotswap.config import apply_overrides
from hotswap.contracts.models import AppliedSetting, EngineConfig, ModelSpec
from hotswap.contracts.requests import SamplingParams
from hotswap.errors import InvalidRequest
from hotswap.model_settings import SAMPLING_KINDS, overrides_of

SPEC = ModelSpec(id="m", path=None, aliases=("a",), engine=EngineConfig(max_num_seqs=3))


def test_overrides_are_laid_on_top_and_say_where_they_come_from() -> None:
    settings = {"max_model_len": 4096, "kv_cache_memory": "1GiB", "ttl_s": "5m"}
    spec = apply_overrides(SPEC, settings, "request")
    assert spec.engine == EngineConfig(max_num_seqs=3, max_model_len=4096, kv_cache_memory=2**30)
    assert spec.ttl_s == 300
    assert spec.applied == {
        "max_model_len": AppliedSetting(4096, "request"),
        "kv_cache_memory": AppliedSetting(2**30, "request"),
        "ttl_s": AppliedSetting(300.0, "request"),
    }
    assert SPEC.applied == {}


def test_a_later_layer_wins_key_by_key() -> None:
    lower = {"max_model_len": 1, "sampling": {"temperature": 0.5, "top_k": 7}}
    spec = apply_overrides(SPEC, lower, "model_dir")
    spec = apply_overrides(spec, {"sampling": {"top_k": -1}, "ttl_s": 60}, "config_file")
    assert spec.sampling == SamplingParams(temperature=0.5, top_k=0)
    assert {key: setting.source for key, setting in spec.applied.items()} == {
        "max_model_len": "model_dir",
        "sampling.temperature": "model_dir",
        "sampling.top_k": "config_file",
        "ttl_s": "config_file",
    }


def test_the_config_file_adds_aliases() -> None:
    spec = apply_overrides(SPEC, {"aliases": ["a", "b"]}, "config_file")
    assert spec.aliases == ("a", "b")


def test_the_config_file_pins_models_and_makes_them_background_ones() -> None:
    spec = apply_overrides(SPEC, {"pin": True, "background": True}, "config_file")
    assert (spec.pin, spec.background) == (True, True)
    assert apply_overrides(SPEC, {"show_loading": True}, "config_file").show_loading
    assert (SPEC.pin, SPEC.background) == (False, False)


def test_a_load_request_may_have_a_model_spread() -> None:
    for source in ("request", "uploaded"):
        assert apply_overrides(SPEC, {"device_map": "auto"}, source).engine.device_map == "auto"


def test_null_takes_back_a_limit() -> None:
    spec = apply_overrides(SPEC, {"max_model_len": 5}, "config_file")
    assert apply_overrides(spec, {"max_model_len": None}, "request").engine == SPEC.engine


@pytest.mark.parametrize(
    ("overrides", "param", "complaint"),
    [
        ({"max_modle_len": 1}, "max_modle_len", "Did you mean max_model_len"),
        ({"max_model_len": True}, "max_model_len", "whole number"),
        ({"max_model_len": "4096"}, "max_model_len", "whole number"),
        ({"max_model_len": 0}, "max_model_len", "of 1 or more"),
        ({"max_num_seqs": None}, "max_num_seqs", "whole number"),
        ({"dtype": "int4"}, "dtype", "one of auto"),
        ({"sampling": 1}, "sampling", "a mapping"),
        ({"sampling": {"temprature": 1}}, "sampling.temprature", "Did you mean temperature"),
        ({"sampling": {"top_p": 2}}, "sampling.top_p", "from 0 to 1"),
        ({"ttl_s": -1}, "ttl_s", "seconds"),
        ({"ttl_s": 10**400}, "ttl_s", "seconds"),
        ({"kv_cache_memory": "9" * 400 + "GiB"}, "kv_cache_memory", "bytes"),
        ({"sampling": {"top_k": 2**31}}, "sampling.top_k", "from -1 to 2147483647"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature", "from 0 to 2"),
        ({"sampling": {"min_p": 1.5}}, "sampling.min_p", "from 0 to 1"),
        ({"sampling": {"presence_penalty": 3}}, "sampling.presence_penalty", "from -2 to 2"),
        ({"sampling": {"repetition_penalty": 1e9}}, "sampling.repetition_penalty", "0.01 to 100"),
        ({"sampling": {"repetition_penalty": 0}}, "sampling.repetition_penalty", "0.01 to 100"),
        ({"sampling": {"temperature": 9}}, "sampling.temperature", "from 0 to 2"),
        ({"sampling": {"seed": 2**63}}, "sampling.seed", "to 9223372036854775807"),
        ({"x" * 300: 1}, "x" * 200, "no setting 'x{200}'"),
        ({"sampling": {"x" * 300: 1}}, "sampling." + "x" * 200, "no setting 'x{200}'"),
    ],
)
def test_a_mistake_is_refused_by_name(
    overrides: dict[str, Any], param: str, complaint: str
) -> None:
    for source in ("request", "uploaded", "config_file", "model_dir"):
        with pytest.raises(InvalidRequest, match=complaint) as raised:
            apply_overrides(SPEC, overrides, source)
        assert raised.value.param == param


def test_a_slip_is_told_what_is_near_and_nothing_that_is_not() -> None:
    def told(key: str, source: str) -> str:
        with pytest.raises(InvalidRequest) as raised:
            apply_overrides(SPEC, {key: "x"}, source)
        return raised.value.message.removeprefix(f"There is no setting {key!r}.").strip()

    for source in ("request", "uploaded"):
        assert told("modell", source) == "Did you mean model?"
    assert told("modell", "model_dir") == ""
    assert told("pth", "config_file") == "Did you mean path?"
    assert told("max_len", "request") == "Did you mean max_model_len?"
    assert told("max-model-len", "request") == "Did you mean max_model_len?"
    assert told("gpu_memory_utilization", "request") == ""


@pytest.mark.parametrize(
    ("source", "key", "value"),
    [
        ("request", "trust_remote_code", True),
        ("uploaded", "trust_remote_code", False),
        ("model_dir", "trust_remote_code", True),
        ("request", "chat_template", "{{ x }}"),
        ("request", "device", "cpu"),
        ("model_dir", "device", "cpu"),
        ("request", "aliases", ["gpt-4"]),
        ("model_dir", "aliases", ["gpt-4"]),
        ("request", "pin", True),
        ("uploaded", "pin", False),
        ("model_dir", "pin", True),
        ("request", "background", True),
        ("model_dir", "background", True),
        ("model_dir", "device_map", "auto"),
    ],
)
def test_what_runs_code_takes_a_name_or_keeps_memory_is_the_operators_alone(
    source: str, key: str, value: Any
) -> None:
    with pytest.raises(InvalidRequest, match="cannot be set by") as raised:
        apply_overrides(SPEC, {key: value}, source)
    assert raised.value.param == key
    apply_overrides(SPEC, {key: value}, "config_file")


def test_what_a_request_set_can_be_set_again_on_another_spec() -> None:
    given = {"max_model_len": 7, "sampling": {"seed": 1}}
    spec = apply_overrides(SPEC, {"max_num_seqs": 2}, "model_dir")
    spec = apply_overrides(spec, given, "uploaded")
    assert overrides_of(spec, "request", "uploaded") == {"uploaded": given}


def test_a_context_longer_than_the_models_own_is_refused() -> None:
    spec = replace(SPEC, max_position_embeddings=1024)
    assert apply_overrides(spec, {"max_model_len": 1024}, "request").engine.max_model_len == 1024
    with pytest.raises(InvalidRequest, match="1024 tokens") as caught:
        apply_overrides(spec, {"max_model_len": 1025}, "request")
    assert caught.value.param == "max_model_len"


def test_defaults_may_be_what_requests_may_ask_for() -> None:
    import msgspec

    from hotswap.api.openai import Common

    asked = {
        "temperature": (0, 2),
        "top_k": (-1, 2**31 - 1),
        "top_p": (0, 1),
        "min_p": (0, 1),
        "repetition_penalty": (0.01, 100),
        "frequency_penalty": (-2, 2),
        "presence_penalty": (-2, 2),
        "seed": (-(2**63), 2**63 - 1),
    }
    assert asked.keys() == SAMPLING_KINDS.keys()
    for name, bounds in asked.items():
        for bound in bounds:
            msgspec.convert({name: bound}, Common)
            SAMPLING_KINDS[name].check(bound)
        for beyond in (bounds[0] - 1, bounds[1] + 1):
            with pytest.raises(msgspec.ValidationError):
                msgspec.convert({name: beyond}, Common)
            with pytest.raises(ValueError, match="number"):
                SAMPLING_KINDS[name].check(beyond)


def test_a_seed_of_minus_one_is_none() -> None:
    spec = apply_overrides(SPEC, {"sampling": {"seed": -1}}, "request")
    assert spec.sampling.seed is None
