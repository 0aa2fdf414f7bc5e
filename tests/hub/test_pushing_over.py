"""A captioner is pushed to where another one was, and to a card that was edited on the Hub."""

from typing import Any

import pytest

PUSH_OVER = """
import json
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from ituning_hf import push_captioner
from ituning_hf.hub import EvaluationResult, write_card, write_evaluations

folder = Path(shutil.copytree(sys.argv[1], "captioner"))
(folder / "README.md").unlink()
write_card(folder)
api = HfApi()


def push():
    return push_captioner(folder, "over", vision_model="org/clip", text_model="org/text")


def put(name, text):
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo=name, repo_id="ann/over")


result = EvaluationResult(dataset="COCO", split="test", num_images=7, metrics={"cider": 1.0}, command="x")
write_evaluations(folder, [result])
found = {"id": push().repo_id}
(folder / "evaluation.json").unlink()
put("notes.md", "A person's.")
push()
put("README.md", "# My words\\n")
found["kept"] = push().card_kept
(folder / "README.md").write_text("# My newer words\\n")
found["kept of a person's"] = push().card_kept
"""


@pytest.fixture(scope="module")
def found(client, captioners) -> dict[str, Any]:
    return client("writer").run(PUSH_OVER, captioners["a"], package=True)


@pytest.fixture
def commits(hub, found):
    return list(hub.repositories.repositories["ann/over"].commits.values())


def test_a_name_alone_is_completed_on_the_card_too(found, commits):
    assert found["id"] == "ann/over"
    assert b'captioner, revision = "ann/over", "main"' in commits[1].files["README.md"]


def test_what_an_earlier_captioner_left_is_removed_and_nothing_else(commits):
    first, renewed = commits[1].files, commits[3].files
    assert b"COCO" in first["README.md"]
    assert b"COCO" not in renewed["README.md"]
    assert first.keys() - renewed.keys() == {"evaluation.json"}
    assert renewed.keys() - first.keys() == {"notes.md"}


def test_a_card_that_was_edited_on_the_hub_gives_way_to_a_persons_alone(found, commits):
    assert (found["kept"], found["kept of a person's"]) == (True, False)
    cards = [commit.files["README.md"] for commit in commits[4:]]
    assert len(cards) == 2  # the push between them changed nothing
    assert cards[0] == b"# My words\n"
    assert b"base_model:\n- org/clip\n- org/text\n" in cards[1]
    assert cards[1].endswith(b"---\n\n# My newer words\n")
