from __future__ import annotations

import pytest

from hotswap.api.errors import ResponseNotFound
from hotswap.api.responses_store import Kept, ResponseStore


def kept(size_bytes: int = 20) -> Kept:
    return Kept(b"[]", b'{"output":[]}'.ljust(size_bytes - 2))


def test_the_least_recently_used_response_makes_way() -> None:
    store = ResponseStore(max_responses=2)
    store.keep("a", kept())
    store.keep("b", kept())
    store.get("a")
    store.keep("c", kept())
    assert [store.find(name) is not None for name in "abc"] == [True, False, True]


def test_bytes_are_bounded_and_counted() -> None:
    store = ResponseStore(max_bytes=100)
    for name in "abc":
        store.keep(name, kept(40))
    assert (store.find("a"), store.size_bytes) == (None, 80)
    store.keep("c", kept(50))
    assert (store.find("b") is None, store.size_bytes) == (False, 90)
    store.delete("b")
    assert store.size_bytes == 50


def test_what_would_take_all_the_room_is_not_kept() -> None:
    store = ResponseStore(max_bytes=100)
    store.keep("a", kept())
    store.keep("b", kept(101))
    assert store.find("a") is not None
    with pytest.raises(ResponseNotFound):
        store.get("b")


def test_what_is_not_there_cannot_be_deleted() -> None:
    with pytest.raises(ResponseNotFound, match="'x'"):
        ResponseStore().delete("x")


@pytest.mark.parametrize("name", ["", "msg", "msg_x", "msg_x_0", "_x_", "a_b_c_d", "resp_x"])
def test_there_is_no_item_of_a_name_that_means_none(name: str) -> None:
    store = ResponseStore()
    store.keep("resp_x", Kept(b"[]", b'{"output":[{"id":"msg_x_1"}]}'))
    assert store.item(name) is None
    assert store.item("msg_x_1") == {"id": "msg_x_1"}


def test_ids_cannot_be_made_from_others() -> None:
    one, other = ResponseStore(), ResponseStore()
    assert one.suffix("k") == one.suffix("k") != other.suffix("k")
    assert len(one.suffix("k")) == 32
