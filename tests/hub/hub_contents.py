"""Captioners that are on the loopback Hub without having been pushed."""

from pathlib import Path

from hub_connections import LoopbackHub

from ituning_hf.hub.review import review_captioner


def put_captioner(hub: LoopbackHub, name: str, folder: Path, private: bool = False) -> None:
    """Put a captioner on the Hub as if it had been pushed."""
    state = hub.repositories
    commits = {"vision": state.repositories["org/clip"], "text": state.repositories["org/text"]}
    review = review_captioner(folder, vision_model="org/clip", text_model="org/text")
    revisions = {kind: repository.at("main").sha for kind, repository in commits.items()}
    contents = review.contents(name, revisions)
    files = {file: data if isinstance(data, bytes) else data.read_bytes() for file, data in contents.items()}
    state.create(name, private).commit("main", files)
