"""`ituning serve` in a process of its own."""

import re
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import httpx2
import pytest
from PIL import Image
from processes import Command, options, signal_in

import ituning_hf
from ituning_hf.cli import main


def address_of(command: Command) -> str:
    """Wait until a server prints its address, and return the address."""
    while (found := re.search(r"^Serving day at (\S+) \(API: ", command.printed, re.MULTILINE)) is None:
        command.process.join(0.05)
        assert command.process.is_alive(), command.printed
    return found[1]


def test_sigterm_lets_a_running_request_finish(saved_captioner: Path, tmp_path: Path):
    Image.linear_gradient("L").save(tmp_path / "dog.png")
    signalling = partial(signal_in, "ituning_hf.serving.batching", "_generate", 2, signal.SIGTERM)
    command = Command(
        ["serve", f"day={saved_captioner}", *options(port=0, device="cpu")],
        tmp_path / "output",
        {"ITUNING_API_KEY": "secret"},
        signalling,
    )
    with httpx2.Client(base_url=address_of(command), headers={"Authorization": "Bearer secret"}) as client:
        assert client.get("/metrics", headers={"Authorization": "Bearer other"}).status_code == 401
        for _ in range(2):  # the process gets the signal while it captions the second image
            answer = client.post("/caption", files={"file": (tmp_path / "dog.png").read_bytes()})
            model, processor = ituning_hf.load_captioner(saved_captioner, device="cpu")
            assert answer.json()["captions"] == [ituning_hf.caption(model, tmp_path / "dog.png", processor)]
    assert command.end() == -signal.SIGTERM
    assert "Traceback" not in command.printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], r"--port is 70000, expected 0 to 65535"),
        (
            ["--host", "no.such.host.invalid"],
            r"cannot listen on --host no\.such\.host\.invalid --port 8000: ",
        ),
        (["--num_beams", "11"], r"--num_beams is 11, expected at most --max_beams, 10"),
        (["--max_pixels", "0"], r"--max_pixels is 0, expected 1 to 178956970"),
    ],
)
def test_wrong_settings_are_refused_before_a_captioner_is_loaded(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["serve", "nowhere", *flags]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_port_in_use_is_one_clear_error(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "nowhere", "--port", str(port)]) == 2
    expected = f"cannot listen on --host 127.0.0.1 --port {port}: Address already in use; choose another"
    assert expected in capsys.readouterr().err


def test_a_server_that_others_can_reach_without_a_key_is_pointed_out(capsys: pytest.CaptureFixture[str]):
    flags = ["--host", "0.0.0.0", "--port", "0"]
    assert main(["serve", "nowhere", *flags]) == 2  # there is no such captioner
    assert "anyone who can reach 0.0.0.0 can use this server" in capsys.readouterr().err
    assert main(["serve", "nowhere", *flags, "--api_key", "secret"]) == 2
    assert "anyone" not in capsys.readouterr().err


def test_a_missing_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "nowhere"]) == 2
    assert (
        "needs uvicorn, which is not installed: run pip install 'ituning_hf[serve]'"
        in capsys.readouterr().err
    )
