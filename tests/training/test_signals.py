"""SIGTERM and Ctrl-C end a run in good order, with a checkpoint; and leave nothing behind in the process."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from runner import Run, contents, torchrun

from ituning_hf.training import signals
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.errors import RunStopped
from ituning_hf.training.signals import stop_on_signals

Settings = Callable[..., TrainArguments]
LONG = {"max_train_steps": 100_000, "eval_split": "none", "checkpointing_steps": "100000"}
AGAIN = "go on by the same command with --resume_from_checkpoint latest"


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """Whoever runs the tests in the background may have them start with Ctrl-C ignored."""
    handlers = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    previous = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    yield
    for signum, handler in previous.items():
        signal.signal(signum, handler)


def test_a_signal_that_is_ignored_stays_ignored():
    """As nohup and a script's background jobs have it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals() as request:
        send(signal.SIGINT)
        assert request.signum is None
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(0)  # a bytecode at which the handler can run


def test_a_signal_before_the_first_step_ends_the_run_where_it_is():
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = signal.getsignal(signum)
        message = f"stopped by {signum.name} before the first step"
        with pytest.raises(RunStopped, match=message) as stopped, stop_on_signals():
            send(signum)
        assert stopped.value.exit_code == code
        assert signal.getsignal(signum) == before


def test_a_deferred_signal_is_noted_and_a_second_ctrl_c_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    with stop_on_signals() as stop:
        stop.deferred = True
        send(signal.SIGINT)
        send(signal.SIGINT)  # the same press of the keys, passed on by a launcher
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
    ("signum", "code", "workers", "group"),
    [(signal.SIGTERM, 143, 0, False), (signal.SIGINT, 130, 1, True)],
)
def test_a_signal_saves_a_checkpoint_that_the_run_goes_on_from(
    settings: Settings, signum: signal.Signals, code: int, workers: int, group: bool
):
    """To the whole group, as a terminal sends it, the signal reaches the data loader's workers too."""
    args = settings(**LONG, dataloader_num_workers=workers)
    run = Run(args)
    run.wait_for_step(3)
    run.signal(signum, group)
    assert run.end() == code, run.printed
    step = int(run.printed.rsplit("after step ", 1)[1].split()[0])
    assert step >= 3
    message = f"ituning: stopped by {signum.name} after step {step} of 100000: {AGAIN}"
    assert message in run.printed.splitlines()
    assert "Traceback" not in run.printed
    files = contents(Path(args.output_dir))
    assert {name.split("/")[1] for name in files if name.startswith("checkpoints/")} == {f"step_{step:08d}"}
    assert files["log.jsonl"].count(b"\n") == step


def test_a_signal_while_the_data_is_made_ready_ends_the_run(photos: Path, tmp_path: Path):
    """Making small backbones takes minutes, and there is nothing to save."""
    args = TrainArguments(dataset=str(photos), output_dir=str(tmp_path / "run"))
    run = Run(args)
    run.wait_for("a GPT-2 on ")
    started = time.monotonic()
    run.signal(signal.SIGTERM)
    assert run.end() == 143, run.printed
    assert time.monotonic() - started < 20
    assert f"ituning: stopped by SIGTERM before the first step: {AGAIN}" in run.printed.splitlines()
    assert "Traceback" not in run.printed
    assert sorted(contents(args.output_dir)) == [
        ".lock",
        "backbones/tokenizer/merges.txt",
        "backbones/tokenizer/vocab.json",
    ]


def stop_two_processes(args: TrainArguments, rank: str | None) -> None:
    """Send SIGTERM to torchrun, or to one of its processes alone; both must have saved the same step."""
    log = Path(args.output_dir) / "log.jsonl"
    running = torchrun(args)
    while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    family = psutil.Process(running.pid)
    chosen = (
        [child for child in family.children() if child.environ().get("RANK") == rank] if rank else [family]
    )
    chosen[0].terminate()
    printed = running.communicate(timeout=300)[1]
    stopped = re.findall(rf"^ituning: stopped by SIGTERM after step (\d+) of 100000: {AGAIN}$", printed, re.M)
    assert len(stopped) == 1, printed
    folder = Path(args.output_dir) / "checkpoints" / f"step_{int(stopped[0]):08d}"
    assert {f"random_states_{rank}.pkl" for rank in (0, 1)} <= set(contents(folder))


@pytest.mark.stress
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_signal_to_one_process_alone_stops_both(settings: Settings, rank: str):
    stop_two_processes(settings(**LONG, per_device_train_batch_size=2), rank)


def test_two_processes_stop_at_one_step_and_fail_with_one_message(settings: Settings):
    """torchrun passes SIGTERM on; and a folder that is refused, by one process, ends both."""
    args = settings(**LONG, per_device_train_batch_size=2)
    stop_two_processes(args, None)
    refused = torchrun(args)
    printed = refused.communicate(timeout=300)[1]
    assert refused.returncode == 1  # torchrun's own, whatever its processes ended with
    assert printed.count("ituning: error: --output_dir") == 1, printed
    assert "holds another run" in printed
    codes = re.findall(r"exitcode *: (-?\d+) ", printed)
    # On a busy machine torchrun sends SIGTERM to the second before it has ended by itself.
    assert set(codes) - {"-15", "143"} == {"2"}, printed
