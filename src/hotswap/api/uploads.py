"""``load_model`` as an upload: a YAML file in a multipart form."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from email.message import Message
from typing import Any

from anyio import to_thread
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from hotswap.api.body import read_body
from hotswap.config import parse_yaml
from hotswap.errors import InvalidRequest

MAX_FIELD_BYTES = 64 << 10
"""Far more than any model's settings; YAML takes 10 us a byte to parse."""
_MAX_BYTES = 2 * MAX_FIELD_BYTES
_FIELDS = ("config", "model")


async def read_upload(request: Request) -> tuple[str | None, dict[str, Any]]:
    """The model's name and the settings of a form with a file ``config``, a field ``model``, or
    both. A key ``model`` in the file does as well.

    Raises:
        InvalidRequest, RequestTooLarge
    """
    form = await _form(request)
    try:
        _check_fields(form)
        text = await _content(form, "config")
        config = await to_thread.run_sync(parse_yaml, text, "config")
        name = (await _content(form, "model")).decode(errors="replace")
    finally:
        await form.close()
    return _model_name(name, config.pop("model", None)), config


async def _form(request: Request) -> FormData:
    body = await read_body(request.receive, request.scope, _MAX_BYTES)
    _check_whole(request, body)

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers, chunks(), max_files=1, max_fields=2, max_part_size=MAX_FIELD_BYTES
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the form cannot be read: {error.message}") from None
    except (LookupError, ValueError):  # what older multipart parsers let through
        raise InvalidRequest("the form cannot be read") from None


def _check_whole(request: Request, body: bytes) -> None:
    """Starlette takes a form that is cut off for a shorter one, and leaks its last file."""
    head = Message()
    head["content-type"] = request.headers["content-type"]
    if not body.rstrip().endswith(f"--{head.get_boundary()}--".encode()):
        raise InvalidRequest("the form cannot be read: it has no end")


def _check_fields(form: FormData) -> None:
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if name not in _FIELDS:
            raise InvalidRequest(f"{name[:200]}: unknown form field", param=name[:200])
        if names.count(name) > 1:
            raise InvalidRequest(f"{name}: given twice", param=name)
    if not names:
        raise InvalidRequest("config: missing, and so is model", param="config")


async def _content(form: FormData, name: str) -> bytes:
    value = form.get(name)
    content = await value.read() if isinstance(value, UploadFile) else (value or "").encode()
    if len(content) > MAX_FIELD_BYTES:
        raise InvalidRequest(f"{name}: larger than {MAX_FIELD_BYTES} bytes", param=name)
    return content


def _model_name(field: str, key: Any) -> str | None:
    if key is not None and not isinstance(key, str):
        raise InvalidRequest("model: expected a string", param="model")
    if field and key and field != key:
        raise InvalidRequest("model: the form and the file name different models", param="model")
    return field or key or None
