"""Where a model that somebody wants is to lie, whole on one device or spread over several, decided
before anything of it is read."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from hotswap.contracts.models import ModelSpec
from hotswap.contracts.reports import Estimate
from hotswap.engine import device as devices
from hotswap.engine.device_memory import Room, RoomsOf
from hotswap.engine.fit import (
    Free,
    Need,
    estimate,
    estimate_spread,
    is_too_tight,
    need_of,
)
from hotswap.engine.front import Front, local_path
from hotswap.engine.outline import loaded_bytes, outline
from hotswap.engine.preflight import WeightFiles, check_weights, read_config
from hotswap.engine.prepared import LoadKey, as_spread, load_key
from hotswap.engine.quantization import for_reading, is_quantised, quantizer_of
from hotswap.engine.sizes import refuse_more_than_the_files_hold
from hotswap.engine.weights import Known
from hotswap.errors import CheckpointRefused, InsufficientMemory

ADVICE = "--device-map auto would spread it over all CUDA devices and host memory, which is slower."


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model as its files and its settings describe it."""

    spec: ModelSpec
    device: torch.device
    front: Front
    files: WeightFiles
    need: Need
    rooms: Sequence[Room]
    """Where it could be spread; none: it lies whole in any case."""
    key: LoadKey
    """Of its weights, if it lies whole."""

    @property
    def keys(self) -> tuple[LoadKey, LoadKey]:
        """Whole, and spread."""
        return self.key, as_spread(self.key)


@dataclass(frozen=True, slots=True)
class Plan:
    """``rooms``: where it is to be spread; none: it lies whole on its device."""

    estimate: Estimate
    key: LoadKey
    rooms: Sequence[Room] = ()


def look_at(
    spec: ModelSpec, front: Front, rooms_of: RoomsOf, known: Mapping[LoadKey, Known]
) -> Candidate:
    """
    Args:
        known: What was found out about models that have run.

    Raises:
        CheckpointRefused: its files are unusable, or a package is missing to read them with.
        OSError
    """
    if is_quantised(front.config):
        quantizer_of(for_reading(front.config))
    device, path = devices.torch_device(spec.engine.device), local_path(spec)
    files = check_weights(path)
    key = load_key(spec, device, path, files)
    has_run = known.get(key) or known.get(as_spread(key))
    if has_run is None:
        config = read_config(path, trust_remote_code=spec.engine.trust_remote_code)
        refuse_more_than_the_files_hold(config, files)
    token_bytes = None if has_run is None else has_run.verdict.token_bytes
    return Candidate(
        spec=spec,
        device=device,
        front=front,
        files=files,
        need=need_of(spec, front, loaded_bytes(front, spec.engine, files), token_bytes),
        rooms=rooms_of(device) if front.recipe is None else (),
        key=key,
    )


def plan(candidate: Candidate, *, leaves: bool, parked: Container[LoadKey]) -> Plan:
    """
    Args:
        leaves: A model is there still, and will have left.
        parked: Names weights that are in host memory already.

    Raises:
        CheckpointRefused, InsufficientMemory: it has no place on one device and cannot be spread.
    """
    free = _free(candidate, leaves)
    whole = _plan_whole(candidate, free, parked)
    is_asked_for = candidate.spec.engine.device_map == "auto"
    if not candidate.rooms or not is_too_tight(candidate.need, free):
        return whole
    if whole.estimate.fits and not is_asked_for:
        return whole
    try:
        spread = _plan_spread(candidate, leaves=leaves, parked=parked)
    except (CheckpointRefused, InsufficientMemory):
        if is_asked_for and not whole.estimate.fits:
            raise
        return whole
    if is_asked_for:
        return spread if spread.estimate.fits or not whole.estimate.fits else whole
    return _advised(whole) if spread.estimate.fits else whole


def unspread(candidate: Candidate, *, leaves: bool, parked: Container[LoadKey]) -> Estimate:
    """On one device, whatever the settings. See `plan`."""
    return _plan_whole(candidate, _free(candidate, leaves), parked).estimate


def refuse_misfit(candidate: Candidate, found: Plan, *, has_run: bool) -> None:
    """Before another model leaves for it.

    Args:
        has_run: Until then it is a guess how many bytes a token takes, and nothing is refused for
            what is not certain.

    Raises:
        InsufficientMemory
    """
    asked = candidate.spec.engine.kv_cache_memory
    certain = has_run or (asked is not None and asked > found.estimate.host_free_bytes)
    if not found.rooms and candidate.device.type == "cuda":
        least = candidate.need.weights + (asked or 0)
        certain |= least > devices.total_bytes(candidate.device)
    if certain and not found.estimate.fits:
        raise InsufficientMemory(found.estimate.reason or "The model does not fit.")


def advice(candidate: Candidate) -> str | None:
    """What the settings could say otherwise, for a model in host memory that had no room on its
    device, which is empty again; None: nothing that would help."""
    if not candidate.rooms or candidate.spec.engine.device_map == "auto":
        return None
    try:
        spread = _plan_spread(candidate, leaves=False, parked={as_spread(candidate.key)})
    except (CheckpointRefused, InsufficientMemory):
        return None
    return ADVICE if spread.estimate.fits else None


def _plan_whole(candidate: Candidate, free: Free, parked: Container[LoadKey]) -> Plan:
    found = estimate(candidate.need, free, is_parked=candidate.key in parked)
    return Plan(found, candidate.key)


def _plan_spread(candidate: Candidate, *, leaves: bool, parked: Container[LoadKey]) -> Plan:
    found = estimate_spread(
        candidate.need,
        devices.free_host_bytes(),
        _free_rooms(candidate, leaves),
        outline(candidate.front, candidate.spec.engine),
        is_parked=as_spread(candidate.key) in parked,
    )
    return Plan(found, as_spread(candidate.key), candidate.rooms)


def _advised(found: Plan) -> Plan:
    reason = f"{found.estimate.reason} {ADVICE}"
    return replace(found, estimate=replace(found.estimate, reason=reason))


def _free(candidate: Candidate, leaves: bool) -> Free:
    host, rooms = devices.free_host_bytes(), _free_rooms(candidate, leaves)
    device = candidate.device
    is_apart = bool(rooms) or device.type == "cuda"
    return Free(
        host=host,
        device=rooms[0][1] if rooms else devices.free_bytes(device) + _freed(device, leaves),
        is_apart=is_apart,
    )


def _free_rooms(candidate: Candidate, leaves: bool) -> Sequence[tuple[str, int]]:
    """Names of devices and their free bytes."""
    return [
        (str(room.device), room.free_bytes() + _freed(room.device, leaves))
        for room in candidate.rooms
    ]


def _freed(device: torch.device, leaves: bool) -> int:
    return devices.held_bytes(device) if leaves else 0
