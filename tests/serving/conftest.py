"""Two small captioners that share their frozen models, and their server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from small_models import make_captioner, randomize_adapters

from ituning_hf import ITuningProcessor, save_captioner
from ituning_hf.serving.arguments import ServerArguments
from ituning_hf.serving.captioners import Captioner, load_captioners
from ituning_hf.serving.server import create_app


@pytest.fixture(scope="session")
def captioners(
    backbones: dict[str, Path],
    saved_captioner: Path,
    processor: ITuningProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Captioner]:
    """Captioners "day" and "night"."""
    folder = tmp_path_factory.mktemp("night")
    save_captioner(randomize_adapters(make_captioner(backbones), seed=5), processor, folder)
    return load_captioners([f"day={saved_captioner}", f"night={folder}"], device="cpu")


@pytest.fixture
def server(captioners: dict[str, Captioner]) -> Iterator[Callable[..., TestClient]]:
    """A function that starts a server with some settings, and returns its client."""
    clients: list[TestClient] = []

    def start(**settings: object) -> TestClient:
        app = create_app(captioners, ServerArguments(**settings))
        clients.append(TestClient(app, raise_server_exceptions=False).__enter__())
        return clients[-1]

    yield start
    for client in clients:
        client.__exit__(None, None, None)
