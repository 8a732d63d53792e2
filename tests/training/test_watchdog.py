"""However a rank ends, the others end soon, and the first cause is what they say."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import watchdog_ranks as act
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from training_runs import environment
from watchdog_ranks import Act, ranks

from lightning_budget.errors import InputError
from lightning_budget.training import watchdog_hub
from lightning_budget.training.watchdog import Watchdog, _retire_lightnings_observer
from lightning_budget.training.watchdog_hub import Hub
from lightning_budget.training.watchdog_wire import Line, Message
from tests.forked import Forked

LOST = "error: rank {} was lost without a word (killed, or out of memory?); rank {} stops; resume with ckpt_path=<run"


@pytest.mark.parametrize("killed", [0, 2])
@pytest.mark.parametrize("doing", [act.collective, act.stuck, act.busy, act.sleep])
def test_a_killed_rank_ends_the_others_whatever_they_do(tmp_path: Path, killed: int, doing: Act) -> None:
    acts = [doing] * 3
    acts[killed] = act.sleep
    with ranks(tmp_path, acts) as run:
        time.sleep(0.1)
        run.kill(killed)
        run.wait()
        for rank in {0, 1, 2} - {killed}:
            assert run.codes[rank] == 1
            (line,) = run.told(rank).splitlines()
            assert line.startswith(LOST.format(killed, rank))


def test_a_killed_rank_is_noticed_although_its_child_lives_on(tmp_path: Path) -> None:
    with ranks(tmp_path, [act.sleep, act.leave_a_child, act.stuck]) as run:
        time.sleep(0.2)
        run.kill(1)
        run.wait(5)
        assert run.codes == [1, -signal.SIGKILL, 1]
        assert run.told(2).startswith(LOST.format(1, 2))


@pytest.mark.parametrize("failing", [0, 1])
def test_an_exception_is_told_by_the_rank_it_happened_on_and_named_by_the_others(tmp_path: Path, failing: int) -> None:
    acts = [act.collective] * 3
    acts[failing] = act.fail
    (tmp_path / "slow").write_text("1.0")
    with ranks(tmp_path, acts) as run:
        run.wait()
        assert run.codes == [1, 1, 1]
        assert f"ValueError: bad luck on rank {failing}\nin two lines" in run.told(failing)
        assert "Traceback" in run.told(failing)
        for rank in {0, 1, 2} - {failing}:
            cause = f"ValueError: bad luck on rank {failing} in two lines"
            assert run.told(rank) == f"error: rank {failing} failed: {cause}; rank {rank} stops\n"
            # It has had the time it took for its last words.
            assert run.ends[rank] > run.ends[failing] - 0.2


def test_a_rank_that_exits_amid_the_others_has_failed(tmp_path: Path) -> None:
    with ranks(tmp_path, [act.busy, act.exit_early]) as run:
        run.wait()
        assert run.codes == [1, 3]
        assert [run.told(rank) for rank in range(2)] == ["error: rank 1 failed: SystemExit: 3; rank 0 stops\n", ""]


def test_what_every_rank_refuses_is_said_once(tmp_path: Path) -> None:
    with ranks(tmp_path, [act.refuse_late, act.refuse, act.refuse]) as run:
        run.wait()
        assert run.codes == [2, 2, 2]
        assert [run.told(rank) for rank in range(3)] == [f"error: {_refusal()}\n", "", ""]


def test_what_one_rank_refuses_is_said_by_rank_0(tmp_path: Path) -> None:
    with ranks(tmp_path, [act.collective, act.collective, act.refuse]) as run:
        run.wait()
        assert run.codes == [2, 2, 2]
        assert [run.told(rank) for rank in range(3)] == [f"error: rank 2: {_refusal()}\n", "", ""]


def test_ranks_may_end_at_different_times_and_answer_late(tmp_path: Path) -> None:
    """Rank 0 ends long before rank 3, rank 1 is stopped meanwhile, rank 2 keeps the interpreter's lock."""
    with ranks(tmp_path, [act.leave, act.nap, act.hold_the_lock, act.late]) as run:
        run.kill(1, signal.SIGSTOP)
        time.sleep(0.5)
        run.kill(1, signal.SIGCONT)
        run.wait()
        assert run.codes == [0, 0, 0, 0]
        assert [run.told(rank) for rank in range(4)] == [""] * 4
        assert run.ends[3] > run.ends[0]


def test_a_rank_that_left_in_peace_is_no_cause_but_mentioned(tmp_path: Path) -> None:
    """Rank 1 leaves, then the collective of the others breaks: no other rank was lost or failed."""
    with ranks(tmp_path, [act.sleep, act.leave, act.collective]) as run:
        run.wait()
        assert run.codes == [1, 0, 1]
        assert run.told(0).startswith("error: rank 2 failed: RuntimeError: ")
        assert run.told(0).endswith("(rank 1 had ended before); rank 0 stops\n")
        assert "Traceback" in run.told(2)


def test_after_one_rank_left_in_peace_another_is_still_missed(tmp_path: Path) -> None:
    with ranks(tmp_path, [act.sleep, act.leave, act.sleep]) as run:
        run.processes[1].join(act.LIMIT)
        run.kill(2)
        run.wait()
        assert run.codes == [1, 0, -signal.SIGKILL]
        assert run.told(0).startswith(LOST.format(2, 0))


def test_an_interruption_of_all_is_quiet(tmp_path: Path) -> None:
    with ranks(tmp_path, [act.sleep, act.busy, act.sleep]) as run:
        for rank in range(3):
            run.kill(rank, signal.SIGINT)
        run.wait()
        for rank in range(3):
            assert run.told(rank).endswith("KeyboardInterrupt\n")
            assert "error:" not in run.told(rank)


def test_an_interruption_of_one_ends_all(tmp_path: Path) -> None:
    with ranks(tmp_path, [act.sleep, act.sleep, act.busy]) as run:
        run.kill(1, signal.SIGINT)
        run.wait()
        assert (run.codes[0], run.codes[2]) == (130, 130)
        assert run.told(0) == "rank 1 was interrupted; rank 0 stops\n"
        assert run.told(2) == ""


@pytest.mark.parametrize(("what", "rank"), [("raise", 1), ("kill", 0)])
def test_ranks_started_by_lightning(tmp_path: Path, what: str, rank: int) -> None:
    """One pipe for both ranks: it ends when both are gone, although rank 1 is the child of a killed rank 0."""
    script = Path(__file__).with_name("watchdog_training.py")
    with Forked([script, what, str(rank)], environment(), tmp_path) as process:
        timer = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            before = []
            while not before or not before[-1].startswith(f"rank {rank} in trouble"):
                before.append(process.stdout.readline())
                assert before[-1], "".join(before)
            start = time.monotonic()
            after = process.stdout.read()
            assert time.monotonic() - start < act.LIMIT
        finally:
            timer.cancel()
    output = "".join(before) + after
    assert "done" not in output
    if what == "kill":
        assert process.returncode == -signal.SIGKILL
        assert after.startswith(LOST.format(0, 1))
        assert "Traceback" not in output
    else:
        assert process.returncode == 1
        assert output.count("error: rank 1 failed: ValueError: bad luck; rank 0 stops\n") == 1
        # The traceback is rank 1's; rank 0 has none of its own about a closed connection.
        assert output.count("Traceback") == 1
        assert "[rank0]" not in output


def test_lightnings_observer_kills_nobody_before_the_cause_is_told() -> None:
    failed = subprocess.Popen([sys.executable, "-S", "-c", "exit(1)"])
    failed.wait()
    with subprocess.Popen(["sleep", "60"]) as main:
        observer = _ChildProcessObserver(main_pid=main.pid, child_processes=[failed], sleep_period=1)
        observer.start()
        _retire_lightnings_observer()
        observer.join(10)
        assert not observer.is_alive()
        assert main.poll() is None
        main.kill()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """For two ranks, in this process."""
    hub = Hub(2)
    hub.start()
    yield hub
    if hub.is_alive():
        Watchdog(0, ("127.0.0.1", hub.port), hub.token, hub).stop()


@pytest.mark.parametrize(
    "hello",
    [
        json.dumps({"rank": 1, "pid": 1, "token": "0" * 32}),
        json.dumps({"rank": 1, "pid": 1, "token": "ключ"}, ensure_ascii=False),
        json.dumps({"rank": 1, "pid": 1}),
        "GET / HTTP/1.1",
        "[]",
        "9" * (1 << 17),
    ],
)
def test_strangers_are_dropped_and_do_no_harm(hub: Hub, hello: str) -> None:
    with socket.create_connection(("127.0.0.1", hub.port), timeout=5) as stranger:
        stranger.sendall(hello.encode() + b"\n")
        with suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
    address = ("127.0.0.1", hub.port)
    zero = Watchdog(0, address, hub.token, hub)
    one = Watchdog(1, address, hub.token)
    one.stop()
    zero.stop()


def test_the_token_admits_each_rank_once(hub: Hub) -> None:
    address = ("127.0.0.1", hub.port)
    one = Watchdog(1, address, hub.token)
    for rank in (1, 2, -1, True):
        with pytest.raises(ConnectionError, match=f"does not take rank {rank}"):
            Watchdog(rank, address, hub.token)
    one.stop()


RANK = """
import json, os, socket, time
s = socket.create_connection(("127.0.0.1", {port}))
s.sendall(json.dumps(dict(rank={rank}, pid=os.getpid(), token="{token}")).encode() + b"\\n")
time.sleep(60)
"""


def test_rank_0_knows_what_killed_its_children_and_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_hub, "DRAIN", 0.5)
    hub = Hub(3)
    hub.start()
    zero = Line(socket.create_connection(("127.0.0.1", hub.port), timeout=20))
    zero.send({"rank": 0, "pid": 0, "token": hub.token})
    code = [RANK.format(port=hub.port, rank=rank, token=hub.token) for rank in (1, 2)]
    children = [subprocess.Popen([sys.executable, "-c", c]) for c in code]
    try:
        while set(hub._ranks.values()) != {0, 1, 2}:
            time.sleep(0.01)
        # A stopped process neither hears nor leaves.
        children[1].send_signal(signal.SIGSTOP)
        children[0].send_signal(signal.SIGSEGV)
        heard: list[Message] = []
        while len(heard) < 3:
            heard += zero.receive() or [{}]
        assert heard == [
            {"kind": "welcome"},
            {"kind": "lost", "rank": 1, "text": "was killed by SIGSEGV"},
            {"kind": "end"},
        ]
        assert children[1].wait(5) == -signal.SIGKILL
        hub.join(5)
        assert not hub.is_alive()
    finally:
        for child in children:
            child.kill()
            child.wait()
        zero.socket.close()


def test_nothing_is_left_after_the_stop() -> None:
    before, hook = set(threading.enumerate()), sys.excepthook
    hub = Hub(2)
    hub.start()
    address = ("127.0.0.1", hub.port)
    idle = socket.create_connection(address, timeout=5)
    zero = Watchdog(0, address, hub.token, hub)
    one = Watchdog(1, address, hub.token)
    # Everybody is in: the door is shut, and who came through it without a word is out.
    assert idle.recv(1) == b""
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5).close()
    one.stop()
    zero.stop()
    assert set(threading.enumerate()) == before
    assert sys.excepthook == hook
    for watchdog in (zero, one):
        assert watchdog._line.socket.fileno() == -1
        watchdog.report(ValueError("nobody hears this"))
        watchdog.stop()


def test_a_lost_machine_is_told_by_the_kernel(hub: Hub) -> None:
    """Cannot be staged here: that the options are set on both ends."""
    address = ("127.0.0.1", hub.port)
    zero = Watchdog(0, address, hub.token, hub)
    one = Watchdog(1, address, hub.token)
    for line in (zero._line, one._line, *hub._ranks):
        assert line.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert line.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 20
        assert line.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    one.stop()
    zero.stop()


def _refusal() -> str:
    with pytest.raises(InputError) as refusal:
        act.refuse(0)
    return str(refusal.value)
