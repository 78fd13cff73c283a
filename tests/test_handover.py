"""Sockets that come from systemd or from the image before, in processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from hotswap.handover import inherit

FIRST_IMAGE = """
import json, os, signal, socket, sys
from hotswap.handover import HEEDED, Note, hand_over, inherit

image = inherit(os.environ)
if image.note is None:
    listener = socket.create_server(("127.0.0.1", 0))
    # What must not be inherited: files, whatever their owner said.
    left_open = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    for descriptor in left_open:
        os.set_inheritable(descriptor, True)
    client = socket.create_connection(listener.getsockname())
    os.kill(os.getpid(), signal.SIGCONT)
    note = Note(reason="test", model="A", settings={"request": {"max_model_len": 7}},
                startup_places={"org/m": "/models/org/m"}, device="cuda:0",
                restarts=(1.5, 2.5), restarted=7)
    hand_over(listener, note, image.environment)
else:
    peer, _ = image.listener.accept()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    print(json.dumps({
        "pid": os.getpid(),
        "argv": sys.argv[1:],
        "note": [image.note.reason, image.note.model, image.note.settings, image.note.device,
                 image.note.restarts, image.note.restarted, image.note.startup_places],
        "open": sorted(int(fd) for fd in os.listdir("/proc/self/fd")
                       if os.path.exists(f"/proc/self/fd/{fd}")),
        "own": [image.listener.fileno(), peer.fileno()],
        "inheritable": image.listener.get_inheritable(),
        "blocked": sorted(blocked) == sorted(HEEDED),
        "told": sorted(name for name in os.environ if name.startswith("LISTEN_")),
        "secret": os.environ["SECRET"],
    }))
"""


def test_the_next_image_has_the_socket_the_note_and_nothing_else() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FIRST_IMAGE, "an argument"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SECRET": "kept"},
    )
    output, _ = process.communicate(timeout=60)
    told: dict[str, Any] = json.loads(output)
    assert told["pid"] == process.pid
    assert told["argv"] == ["an argument"]
    settings = {"request": {"max_model_len": 7}}
    places = {"org/m": "/models/org/m"}
    assert told["note"] == ["test", "A", settings, "cuda:0", [1.5, 2.5], 7, places]
    assert [fd for fd in told["open"] if fd not in (0, 1, 2, *told["own"])] == []
    assert not told["inheritable"], "its own children are not to have it"
    assert told["blocked"], "signals wait until they are heeded"
    assert told["told"] == []
    assert told["secret"] == "kept"


LISTENING = """
import os, sys
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": sys.argv[1]}
from hotswap.handover import inherit
from hotswap.options import ConfigError
try:
    image = inherit(os.environ)
    print(image.host, image.note, image.listener.getsockname()[1])
except ConfigError as error:
    print("refused:", error)
"""


AT_DESCRIPTOR_3 = 'exec "$@" 3<&0 </dev/null'


def activated(passed: socket.socket, count: int = 1) -> str:
    """What a process says that finds ``passed`` at descriptor 3, as systemd would start it."""
    python = [sys.executable, "-c", LISTENING, str(count)]
    return subprocess.run(
        ["sh", "-c", AT_DESCRIPTOR_3, "sh", *python],
        stdin=passed.fileno(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    ).stdout.strip()


def test_a_socket_of_systemd_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert activated(listener) == f"127.0.0.1 None {listener.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["not listening", "unix", "two"])
def test_what_is_no_listening_tcp_socket_is_refused(kind: str) -> None:
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as passed:
        if kind == "unix":
            passed.bind("\0hotswap-test")
            passed.listen()
        elif kind == "two":
            passed.listen()
        said = activated(passed, count=2 if kind == "two" else 1)
    assert said.startswith("refused:")


def test_sockets_for_another_process_are_left_alone() -> None:
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1", "HOME": "/"}
    image = inherit(environment)
    assert image.listener is None
    assert environment == image.environment == {"HOME": "/"}
