from __future__ import annotations

import json
from typing import Any

from hotswap.api.dialect import Stamp
from hotswap.api.responses_answers import Asked, ResponseDocument, ResponseFrames
from hotswap.api.responses_store import ResponseStore
from hotswap.contracts.answers import (
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from hotswap.errors import EngineFailed, Overloaded

STAMP = Stamp(key="k", created_unix=1700000000)
END = Finished(index=0, reason="stop", completion_tokens=3)
CUT = Finished(index=0, reason="length", completion_tokens=3)
EVERYTHING: tuple[GenerationEvent, ...] = (
    ReasoningDelta(index=0, text="hm"),
    TextDelta(index=0, text='é"'),
    TextDelta(index=0, text="!"),
    ToolCallDelta(index=0, call=0, id="call_1", name="weather", arguments='{"city":'),
    ToolCallDelta(index=0, call=0, arguments='"Rom"}'),
    Finished(
        index=0, reason="tool_calls", completion_tokens=9, reasoning_tokens=2, cached_tokens=4
    ),
)


class PlainStore(ResponseStore):
    """Its ids can be read."""

    def suffix(self, key: str) -> str:
        return key


def asked(store: ResponseStore | None = None, **fields: Any) -> Asked:
    given = {"settings": {"tools": []}, "items": (), "keep": False, "summary": False, **fields}
    return Asked(store=store or PlainStore(), **given)


def frames(**fields: Any) -> ResponseFrames:
    return ResponseFrames(STAMP, "m", asked=asked(**fields))


def streamed(*events: GenerationEvent, **fields: Any) -> str:
    ours = frames(**fields)
    return b"".join([ours.opening(), *map(ours.event, events), ours.closing(7)]).decode()


def decoded(stream: str) -> list[Any]:
    return [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]


def whole(*events: GenerationEvent, **fields: Any) -> Any:
    document = ResponseDocument(STAMP, asked=asked(**fields))
    for event in events:
        document.add(event)
    return json.loads(document.body("m", 7))


REASONING = '{"id":"rs_k_0","status":"completed","type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"hm"}]}'  # noqa: E501
MESSAGE = '{"id":"msg_k_1","status":"completed","type":"message","role":"assistant","content":[{"type":"output_text","annotations":[],"logprobs":[],"text":"é\\"!"}]}'  # noqa: E501
CALL = '{"id":"fc_k_2","status":"completed","type":"function_call","call_id":"call_1","name":"weather","arguments":"{\\"city\\":\\"Rom\\"}"}'  # noqa: E501
USAGE = '{"input_tokens":7,"input_tokens_details":{"cached_tokens":4,"cache_write_tokens":0},"output_tokens":9,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":16}'  # noqa: E501


def response(status: str, output: str = "", usage: str = "null") -> str:
    return (
        f'{{"id":"resp_k","object":"response","created_at":1700000000,"status":"{status}",'
        '"background":false,"error":null,"incomplete_details":null,"model":"m",'
        f'"output":[{output}],"usage":{usage},"tools":[]}}'
    )


STREAM = f"""\
event: response.created
data: {{"type":"response.created","response":{response("in_progress")},"sequence_number":0}}

event: response.in_progress
data: {{"type":"response.in_progress","response":{response("in_progress")},"sequence_number":1}}

event: response.output_item.added
data: {{"type":"response.output_item.added","output_index":0,"item":{{"id":"rs_k_0","status":"in_progress","type":"reasoning","summary":[],"content":[]}},"sequence_number":2}}

event: response.content_part.added
data: {{"type":"response.content_part.added","item_id":"rs_k_0","output_index":0,"content_index":0,"part":{{"type":"reasoning_text","text":""}},"sequence_number":3}}

event: response.reasoning_text.delta
data: {{"type":"response.reasoning_text.delta","item_id":"rs_k_0","output_index":0,"content_index":0,"delta":"hm","sequence_number":4}}

event: response.reasoning_text.done
data: {{"type":"response.reasoning_text.done","item_id":"rs_k_0","output_index":0,"content_index":0,"text":"hm","sequence_number":5}}

event: response.content_part.done
data: {{"type":"response.content_part.done","item_id":"rs_k_0","output_index":0,"content_index":0,"part":{{"type":"reasoning_text","text":"hm"}},"sequence_number":6}}

event: response.output_item.done
data: {{"type":"response.output_item.done","output_index":0,"item":{REASONING},"sequence_number":7}}

event: response.output_item.added
data: {{"type":"response.output_item.added","output_index":1,"item":{{"id":"msg_k_1","status":"in_progress","type":"message","role":"assistant","content":[]}},"sequence_number":8}}

event: response.content_part.added
data: {{"type":"response.content_part.added","item_id":"msg_k_1","output_index":1,"content_index":0,"part":{{"type":"output_text","annotations":[],"logprobs":[],"text":""}},"sequence_number":9}}

event: response.output_text.delta
data: {{"type":"response.output_text.delta","item_id":"msg_k_1","output_index":1,"content_index":0,"delta":"é\\"","logprobs":[],"sequence_number":10}}

event: response.output_text.delta
data: {{"type":"response.output_text.delta","item_id":"msg_k_1","output_index":1,"content_index":0,"delta":"!","logprobs":[],"sequence_number":11}}

event: response.output_text.done
data: {{"type":"response.output_text.done","item_id":"msg_k_1","output_index":1,"content_index":0,"text":"é\\"!","logprobs":[],"sequence_number":12}}

event: response.content_part.done
data: {{"type":"response.content_part.done","item_id":"msg_k_1","output_index":1,"content_index":0,"part":{{"type":"output_text","annotations":[],"logprobs":[],"text":"é\\"!"}},"sequence_number":13}}

event: response.output_item.done
data: {{"type":"response.output_item.done","output_index":1,"item":{MESSAGE},"sequence_number":14}}

event: response.output_item.added
data: {{"type":"response.output_item.added","output_index":2,"item":{{"id":"fc_k_2","status":"in_progress","type":"function_call","call_id":"call_1","name":"weather","arguments":""}},"sequence_number":15}}

event: response.function_call_arguments.delta
data: {{"type":"response.function_call_arguments.delta","item_id":"fc_k_2","output_index":2,"delta":"{{\\"city\\":","sequence_number":16}}

event: response.function_call_arguments.delta
data: {{"type":"response.function_call_arguments.delta","item_id":"fc_k_2","output_index":2,"delta":"\\"Rom\\"}}","sequence_number":17}}

event: response.function_call_arguments.done
data: {{"type":"response.function_call_arguments.done","item_id":"fc_k_2","output_index":2,"name":"weather","arguments":"{{\\"city\\":\\"Rom\\"}}","sequence_number":18}}

event: response.output_item.done
data: {{"type":"response.output_item.done","output_index":2,"item":{CALL},"sequence_number":19}}

event: response.completed
data: {{"type":"response.completed","response":{response("completed", f"{REASONING},{MESSAGE},{CALL}", USAGE)},"sequence_number":20}}

"""  # noqa: E501  # the bytes as they are


def test_a_stream_to_the_byte() -> None:
    assert streamed(*EVERYTHING) == STREAM


def test_a_response_in_one_piece_is_what_a_stream_ends_with() -> None:
    assert whole(*EVERYTHING) == decoded(streamed(*EVERYTHING))[-1]["response"]


def test_reasoning_is_a_summary_where_one_is_wanted() -> None:
    events = decoded(streamed(ReasoningDelta(index=0, text="hm"), END, summary=True))
    part = {"type": "summary_text", "text": "hm"}
    assert [event["type"].removeprefix("response.") for event in events[2:-1]] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    assert all(event["summary_index"] == 0 for event in events[3:7])
    assert events[7]["item"]["summary"] == [part]
    assert "content" not in events[7]["item"]


def test_an_answer_that_was_cut_is_incomplete_and_so_is_its_last_item() -> None:
    cut = (
        TextDelta(index=0, text="a"),
        ToolCallDelta(index=0, call=0, id="c", name="f", arguments='{"a'),
        CUT,
    )
    last = decoded(streamed(*cut))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    message, call = last["response"]["output"]
    assert (message["status"], call["status"], call["arguments"]) == (
        "completed",
        "incomplete",
        '{"a',
    )
    assert whole(*cut) == last["response"]
    assert whole(CUT)["output"] == []


def test_a_call_without_arguments_has_an_empty_object() -> None:
    call = ToolCallDelta(index=0, call=0, id="c", name="f")
    assert whole(call, END)["output"][0]["arguments"] == "{}"
    types = [event["type"] for event in decoded(streamed(call, END))]
    assert "response.function_call_arguments.delta" not in types
    assert "response.function_call_arguments.done" in types


def test_logprobs_come_with_their_text() -> None:
    top = TokenLogprob("a", b"a", -0.5)
    token = TokenLogprob("a", b"a", float("-inf"), (top,))
    events = decoded(streamed(TextDelta(index=0, text="a", logprobs=(token,)), END))
    expected = [
        {
            "token": "a",
            "logprob": -9999.0,
            "bytes": [97],
            "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
        }
    ]
    assert events[4]["logprobs"] == expected
    assert events[5]["logprobs"] == expected
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == expected


def test_a_failure_goes_on_counting_and_fails_the_response() -> None:
    ours = frames()
    ours.opening()
    ours.event(TextDelta(index=0, text="a"))
    failed, error = decoded(ours.failure(EngineFailed("broke")).decode())
    assert (failed["type"], failed["sequence_number"]) == ("response.failed", 5)
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "broke"}
    assert (error["type"], error["sequence_number"]) == ("error", 6)
    assert (error["code"], error["message"], error["param"]) == ("engine_failed", "broke", None)
    assert error["error"]["code"] == "engine_failed"


def test_before_a_response_was_created_only_the_error_comes() -> None:
    [error] = decoded(frames().failure(Overloaded("full")).decode())
    assert (error["type"], error["code"]) == ("error", "queue_full")


def test_a_sign_of_life_is_a_comment() -> None:
    assert frames().alive("loading b 42%") == b": loading b 42%\n\n"
    assert frames().loading("loading b 42%\n") == b": loading b 42%\n\n"


def test_what_is_to_be_kept_is_kept_with_what_went_in() -> None:
    for answer in (streamed, whole):
        store = PlainStore()
        hi = {"type": "message", "role": "user", "content": []}
        old = {"id": "msg_old_0", **hi}
        answer(TextDelta(index=0, text="a"), END, store=store, items=[old, hi], keep=True)
        kept = store.get("resp_k")
        assert [item["id"] for item in kept.items()] == ["msg_old_0", "in_k_1"]
        assert kept.output()[0]["content"][0]["text"] == "a"
        assert store.item("msg_k_0") == kept.output()[0]
    store = PlainStore()
    whole(END, store=store)
    assert store.find("resp_k") is None
