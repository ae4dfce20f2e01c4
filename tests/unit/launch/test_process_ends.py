"""How ranks end that nobody stops: real processes, bare interpreters that run a few lines each."""

import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from unit.launch.scene import DEAF, KILLED, PATIENCE_SECONDS, SLEEP, Scene, saving, until

from finelaunch.errors import FinelaunchError
from finelaunch.launch import processes
from finelaunch.launch.processes import STOP_SIGNALS, Ending, RankProcess, run_ranks, tail


def test_all_end_well_and_each_has_its_environment_and_log(scene: Scene) -> None:
    say = "print(rank, os.environ['WORLD_SIZE'], sys.stdin.read() == '', os.getpgid(0) == os.getpid())"
    for _ in range(2):
        ending = run_ranks(scene.ranks(say, f"{say}; print('oh', file=sys.stderr)"), stop_grace_seconds=5)
        assert ending == Ending(0, None, "all ranks ended well", 0.0)
    assert tail(scene.folder / "logs/rank-0.log") == ["0 2 True True"] * 2
    assert sorted(tail(scene.folder / "logs/rank-1.log")) == ["1 2 True True"] * 2 + ["oh"] * 2


def test_rank_without_a_log_writes_to_the_terminal(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    (rank,) = scene.ranks("print('here')")
    run_ranks([RankProcess(0, rank.argv, rank.environment, None)], stop_grace_seconds=5)
    assert capfd.readouterr().out == "here\n"


def test_the_environment_is_the_whole_one(scene: Scene) -> None:
    code = "import os; print(sorted(os.environ))"
    rank = RankProcess(0, (sys.executable, "-c", code), {"ONLY": "1", "LC_CTYPE": "C.UTF-8"}, scene.folder / "log")
    run_ranks([rank], stop_grace_seconds=5)
    assert tail(scene.folder / "log") == ["['LC_CTYPE', 'ONLY']"]


def test_a_rank_that_ends_well_early_is_no_reason_to_end_the_others(scene: Scene) -> None:
    late = "time.sleep(1); (folder / 'late').touch()"
    assert run_ranks(scene.ranks("", late, ""), stop_grace_seconds=5).exit_code == 0
    assert (scene.folder / "late").exists()


def test_the_children_of_a_rank_end_with_it(scene: Scene) -> None:
    spawn = f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}, sys.argv[1]])"
    assert run_ranks(scene.ranks(spawn, spawn), stop_grace_seconds=5).exit_code == 0
    scene.all_gone()


def test_a_killed_rank_ends_the_others_and_is_named(scene: Scene) -> None:
    ending = run_ranks(scene.ranks(SLEEP, f"wait(); {KILLED}", SLEEP), stop_grace_seconds=300)
    assert (ending.exit_code, ending.rank, ending.reason) == (1, 1, "killed by SIGKILL")
    assert 0 < ending.seconds_to_end < 15
    scene.all_gone()


def test_peers_that_ignore_sigterm_are_killed(scene: Scene) -> None:
    ranks = scene.ranks(DEAF, f"wait('ready-0', 'ready-2'); {KILLED}", DEAF)
    ending = run_ranks(ranks, stop_grace_seconds=300, end_seconds=1)
    assert (ending.exit_code, ending.rank, ending.reason) == (1, 1, "killed by SIGKILL")
    assert 1 <= ending.seconds_to_end < 15
    scene.all_gone()


@pytest.mark.parametrize(("code", "answer"), [(1, 1), (2, 2), (3, 3), (17, 1)])
def test_the_exit_code_of_the_first_rank_that_failed(scene: Scene, code: int, answer: int) -> None:
    ending = run_ranks(scene.ranks(SLEEP, f"sys.exit({code})"), stop_grace_seconds=300)
    assert (ending.exit_code, ending.rank, ending.reason) == (answer, 1, f"exit code {code}")
    scene.all_gone()


def test_what_the_peers_do_afterwards_changes_nothing(scene: Scene) -> None:
    ending = run_ranks(scene.ranks(saving(0.2, 3), "wait('ready-0'); sys.exit(2)"), stop_grace_seconds=300)
    assert (ending.exit_code, ending.rank, ending.reason) == (2, 1, "exit code 2")


def test_of_several_dead_the_killed_one_is_named(scene: Scene) -> None:
    class Slow(list[RankProcess]):
        """Ranks of which the last is given when the others are dead, so that one look finds them all."""

        def __iter__(self) -> Iterator[RankProcess]:
            yield from self[:-1]
            until(lambda: not scene.survivors(), "the deaths")
            yield self[-1]

    ending = run_ranks(Slow(scene.ranks("sys.exit(1)", "sys.exit(75)", KILLED, SLEEP)), stop_grace_seconds=300)
    assert (ending.exit_code, ending.rank, ending.reason) == (1, 2, "killed by SIGKILL")


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="there are no such signals")
def test_signals_without_a_name(scene: Scene) -> None:
    ending = run_ranks(scene.ranks(f"os.kill(os.getpid(), {signal.SIGRTMIN + 3})"), stop_grace_seconds=5)
    assert (ending.exit_code, ending.reason) == (1, f"killed by signal {signal.SIGRTMIN + 3}")


def test_a_rank_that_stops_by_itself_stops_all(scene: Scene) -> None:
    ending = run_ranks(scene.ranks(saving(), "wait('ready-0'); sys.exit(75)", saving(0, 0)), stop_grace_seconds=20)
    assert (ending.exit_code, ending.rank, ending.reason) == (75, None, "rank 1 stopped by itself")
    assert scene.there("saved", 0)
    scene.all_gone()


def test_a_rank_that_cannot_be_started_ends_those_before_it(scene: Scene) -> None:
    ranks = scene.ranks(SLEEP, SLEEP)
    ranks.append(RankProcess(2, ("/nowhere/python",), {}, None))
    with pytest.raises(FinelaunchError, match=r"rank 2 could not be started: .*No such file.*'/nowhere/python'"):
        run_ranks(ranks, stop_grace_seconds=300)
    scene.all_gone()


def test_a_fault_of_ours_leaves_nothing_running(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_first_failure", fail)
    with pytest.raises(KeyboardInterrupt):
        run_ranks(scene.ranks(DEAF, "wait('ready-0')"), stop_grace_seconds=300)
    scene.all_gone()


def test_handlers_are_as_before(scene: Scene) -> None:
    numbers = (*STOP_SIGNALS, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    run_ranks(scene.ranks(""), stop_grace_seconds=5)
    with pytest.raises(FinelaunchError):
        run_ranks([RankProcess(0, ("/nowhere/python",), {}, None)], stop_grace_seconds=5)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_only_the_main_thread_can_launch(scene: Scene) -> None:
    raised = []

    def run() -> None:
        try:
            run_ranks(scene.ranks(SLEEP), stop_grace_seconds=5)
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert len(raised) == 1
    assert not scene.survivors()
