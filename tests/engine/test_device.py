from __future__ import annotations

import ctypes
import threading
import weakref
from functools import partial
from pathlib import Path

import anyio
import pytest

from hotswap.errors import DeviceLost, ModelLoadFailed

pytestmark = pytest.mark.torch


def test_all_jobs_run_on_one_thread_in_order() -> None:
    from hotswap.engine.device import Device

    device = Device()
    ran: list[int] = []

    def job(number: int) -> int:
        ran.append(number)
        return threading.get_ident()

    jobs = [device.submit(partial(job, number)) for number in range(9)]
    threads = {job.result(10) for job in jobs}
    assert ran == list(range(9))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    device.close()
    device.join()


def test_an_error_is_that_of_who_waits_and_the_thread_goes_on() -> None:
    from hotswap.engine.device import Device

    device = Device()

    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await device.call(lambda: 1 // 0)
        return await device.call(lambda: 42)

    assert anyio.run(main) == 42
    device.close()
    device.join()


def test_an_error_of_ours_leaves_the_thread_without_the_frames_behind_it() -> None:
    from hotswap.engine.device import Device

    class Tensor:
        pass

    kept: list[weakref.ref[Tensor]] = []

    def job() -> None:
        tensor = Tensor()
        kept.append(weakref.ref(tensor))
        try:
            raise ValueError(tensor)
        except ValueError:
            raise ModelLoadFailed("it does not load") from None

    device = Device()
    submitted = device.submit(job)
    error = submitted.exception(10)
    device.close()
    assert device.join(10)
    assert isinstance(error, ModelLoadFailed)
    assert kept[0]() is None


def test_joining_a_thread_that_hangs_ends() -> None:
    from hotswap.engine.device import Device

    device, release = Device(), threading.Event()
    device.submit(lambda: release.wait(20))
    device.close()
    assert not device.join(0.01)
    release.set()
    assert device.join(10)


@pytest.mark.anyio
async def test_a_job_that_does_not_end_gives_up_the_device() -> None:
    from hotswap.engine.device import Device

    device, release = Device(hung_s=0.01), threading.Event()
    device.check_answering()
    with anyio.fail_after(60), pytest.raises(DeviceLost, match="does not answer"):
        await device.ended(device.submit(lambda: release.wait(20)))
    with pytest.raises(DeviceLost, match="does not answer"):
        device.check_answering()
    device.close()
    assert not device.ends(), "it is not waited for again"
    release.set()
    assert device.join(10)


@pytest.mark.anyio
async def test_the_end_of_a_job_brings_what_came_of_it() -> None:
    from hotswap.engine.device import Device

    def fails() -> None:
        raise ModelLoadFailed("it does not load")

    device = Device()
    assert await device.ended(device.submit(lambda: 7)) == 7
    with pytest.raises(ModelLoadFailed):
        await device.ended(device.submit(fails))
    device.check_answering()
    device.close()
    assert device.ends()


def test_no_gradients_are_kept_on_the_device_thread() -> None:
    import torch

    from hotswap.engine.device import Device

    device = Device()
    assert device.submit(torch.is_inference_mode_enabled).result(10)
    device.close()
    device.join()


@pytest.mark.parametrize(("limit", "free"), [("1000", 250), ("max", 10_000)])
def test_files_that_a_control_group_keeps_in_memory_count_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int
) -> None:
    from hotswap.engine import device

    (tmp_path / "max").write_text(f"{limit}\n")
    (tmp_path / "current").write_text("900\n")
    (tmp_path / "stat").write_text("anon 700\nactive_file 100\ninactive_file 50\nfile 200\n")
    paths = (str(tmp_path / name) for name in ("max", "current", "stat"))
    monkeypatch.setattr(device, "_CGROUP_FILES", [(*paths, device._CGROUP_FILES[0][3])])
    assert min([10_000, *device._cgroup_room()]) == free


def test_a_device_that_is_not_here_is_refused() -> None:
    from hotswap.engine.device import torch_device

    for name in ("tpu", "meta", "", "cuda:99x"):
        with pytest.raises(ModelLoadFailed):
            torch_device(name)


def test_readings_of_the_host_are_plausible() -> None:
    import torch

    from hotswap.engine.device import free_host_bytes, release_cached, used_bytes

    cpu = torch.device("cpu")
    release_cached(cpu)  # or what other tests freed is used again
    before = used_bytes(cpu)
    kept = torch.ones(64 << 20, dtype=torch.uint8)
    assert used_bytes(cpu) - before > 60 << 20
    del kept
    release_cached(cpu)
    assert used_bytes(cpu) - before < 8 << 20
    assert free_host_bytes() > 0


def test_what_a_thread_has_freed_at_the_end_of_its_heap_is_given_back() -> None:
    import torch

    from hotswap.engine.device import Device, trim_heap, used_bytes

    libc, size = ctypes.CDLL(None), 31 << 20
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    # As glibc has it by itself once large blocks have been freed.
    trim_threshold, mmap_threshold = -1, -3
    assert libc.mallopt(mmap_threshold, 32 << 20)
    assert libc.mallopt(trim_threshold, 64 << 20)

    def leave_behind() -> int:
        before = used_bytes(torch.device("cpu"))
        block = libc.malloc(size)
        libc.memset(block, 1, size)
        libc.free(block)
        trim_heap()
        return used_bytes(torch.device("cpu")) - before

    device = Device()
    assert device.submit(leave_behind).result(60) < size // 4
    device.close()
    device.join()
