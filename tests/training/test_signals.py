"""SIGTERM and Ctrl-C end a run with a checkpoint, and leave no handler behind."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import start_two
from runs import Settings, checkpoints, command, count_log_lines, torchrun, wait_for_log

from ituning_hf.cli import main
from ituning_hf.training import run, signals
from ituning_hf.training.errors import RunStopped
from ituning_hf.training.signals import stop_on_signals

LONG = {"max_train_steps": 100_000, "eval_split": "none", "checkpointing_steps": "100000"}


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    """Python's own handlers: tests that run in the background or under nohup start with signals ignored."""
    handlers: dict = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    handlers |= {signal.SIGHUP: signal.SIG_DFL}
    previous = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    yield
    for signum, handler in previous.items():
        signal.signal(signum, handler)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(0)  # a bytecode at which the handler can run


def test_an_ignored_signal_stays_ignored():
    """As with nohup, and in a script's background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals() as request:
        send(signal.SIGINT)
        assert request.signum is None
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_signal_before_the_first_step_raises_at_once():
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = signal.getsignal(signum)
        message = f"stopped by {signum.name} before the first step"
        with pytest.raises(RunStopped, match=message) as stopped, stop_on_signals():
            send(signum)
        assert stopped.value.exit_code == code
        assert signal.getsignal(signum) == before


def test_output_after_the_terminal_is_closed_does_not_raise():
    pty = pytest.importorskip("pty")
    terminal, output = pty.openpty()
    saved = [os.dup(stream) for stream in (1, 2)]
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(terminal)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(1, b"lost")
        with stop_on_signals() as request:
            request.deferred = True
            send(signal.SIGHUP)
            assert request.signum == signal.SIGHUP
        os.write(1, b"discarded")
        os.write(2, b"discarded")
    finally:
        for stream, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(output)


def test_a_deferred_signal_is_recorded_and_a_second_ctrl_c_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.setattr(signals, "SAME_PRESS_SECONDS", 60.0)
    with stop_on_signals() as stop:
        stop.deferred = True
        send(signal.SIGINT)
        send(signal.SIGINT)  # the same key press, passed on by a launcher
        send(signal.SIGTERM)
        assert stop.signum == signal.SIGINT
        assert capfd.readouterr().err.count("finishing the step and saving a checkpoint") == 1
        monkeypatch.setattr(signals, "SAME_PRESS_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt) as interrupted:
            send(signal.SIGINT)
        assert not isinstance(interrupted.value, RunStopped)


def test_other_threads_get_no_handlers():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def use() -> None:
        with stop_on_signals() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.signum))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


@pytest.mark.parametrize(
    ("signum", "code", "workers"), [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 1)], ids=["term", "int"]
)
def test_a_signal_saves_a_checkpoint_to_resume_from(
    settings: Settings, capsys: pytest.CaptureFixture, signum: signal.Signals, code: int, workers: int
):
    """A terminal sends Ctrl-C to the whole group, so to the data loader's workers too."""
    args = settings(**LONG, dataloader_num_workers=workers)

    def interrupt() -> None:
        while count_log_lines(args) < 3:
            time.sleep(0.005)
        for worker in psutil.Process().children() if workers else []:
            worker.send_signal(signum)
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main(command(args)) == code
    thread.join()
    printed = capsys.readouterr().err
    [step] = re.findall(rf"^ituning: stopped by {signum.name} after step (\d+) of 100000: ", printed, re.M)
    assert "--resume_from_checkpoint latest" in printed
    assert checkpoints(args.output_dir) == [f"step_{int(step):08d}"]
    assert count_log_lines(args) == int(step) >= 3


def test_a_signal_while_the_model_is_loaded_ends_the_run(
    settings: Settings, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    load_model = run.load_model

    def interrupted(*arguments: object) -> object:
        send(signal.SIGTERM)
        return load_model(*arguments)

    monkeypatch.setattr(run, "load_model", interrupted)
    args = settings()
    assert main(command(args)) == 143
    assert "ituning: stopped by SIGTERM before the first step: " in capsys.readouterr().err
    assert not Path(args.output_dir).exists()


def step_of(printed: str) -> int:
    """Return the step after which SIGTERM stopped a run."""
    [step] = re.findall(r"^ituning: stopped by SIGTERM after step (\d+) of 100000: ", printed, re.M)
    return int(step)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.stress)])
def test_two_processes_stop_at_the_same_step(settings: Settings, tmp_path: Path, rank: int):
    """The signal reaches one of the processes, which stops the other."""
    args = settings(**LONG, per_device_train_batch_size=2)
    runs = start_two(command(args), tmp_path)
    wait_for_log(runs[0], args, 3)
    os.kill(runs[rank].process.pid, signal.SIGTERM)
    assert [run.end() for run in runs] == [143, 143]
    saved = tmp_path / "run" / "checkpoints" / f"step_{step_of(runs[0].printed):08d}"
    assert (saved / "trainer_state.json").is_file()
    assert "ituning: stopped" not in runs[1].printed


@pytest.mark.stress
def test_torchrun_forwards_a_signal(settings: Settings, tmp_path: Path):
    args = settings(**LONG, per_device_train_batch_size=2)
    with torchrun(args, tmp_path / "output") as process:
        while count_log_lines(args) < 3:
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        process.wait(300)
    first, second = (path.read_text() for path in sorted((tmp_path / "output").rglob("stderr.log")))
    assert checkpoints(args.output_dir) == [f"step_{step_of(first):08d}"]
    assert "ituning: stopped" not in second
