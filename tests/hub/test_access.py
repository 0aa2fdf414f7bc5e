"""Who may read and write, what the commands do with ids, and how what goes wrong is told."""

import json
from typing import Any

import pytest
from hub_contents import put_captioner

COMMANDS = """
import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout

from ituning_hf.cli import main

folder, picture = sys.argv[1:]
found = {}


def ituning(name, *arguments, token=None):
    os.environ.pop("HF_TOKEN", None)
    os.environ |= {"HF_TOKEN": token} if token else {}
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        code = main(arguments)
    found[name] = [code, output.getvalue(), errors.getvalue()]

"""

ACCESS = (
    COMMANDS
    + """
caption = ["caption", picture, "--num_beams", "1", "--model"]
pushed = ["push", folder]
ids = ["--vision_model", "org/clip", "--text_model", "org/text"]

ituning("caption", *caption, "org/captioner")
ituning("info", "info", "org/captioner", "--json")
ituning("no such id", *caption, "org/none")
ituning("no such revision", *caption, "org/captioner", "--revision", "v9")
ituning("no captioner", *caption, "org/clip")
ituning("no config", "info", "org/empty")
ituning("bad token", "info", "org/secret", token="nonsense")
ituning("private", *caption, "org/secret")
ituning("private, of others", *caption, "org/secret", token="reader")
ituning("private, own", *caption, "org/secret", token="writer")

for token in (None, "nonsense", "reader"):
    ituning(f"cached, {token}", *caption, "org/secret", token=token)
ituning("info, cached", "info", "org/secret")

ituning("push, no token", *pushed, "org/new", *ids)
ituning("push, bad token", *pushed, "org/new", *ids, token="nonsense")
ituning("push, of others", *pushed, "org/captioner", *ids, token="reader")
ituning("push, no such place", *pushed, "org/new", "--vision_model", "org/none", *ids[2:], token="writer")
ituning("push, another model", *pushed, "org/new", "--vision_model", "org/other", *ids[2:], token="writer")
ituning("push, public", *pushed, "org/captioner", "--private", *ids, token="writer")
ituning("push, no name", *pushed, "a/b/c", *ids, token="writer")
others = ["--vision_model", "org/gated-clip", "--text_model", "org/private-text"]
ituning("push, over what not all may load", *pushed, "org/open", *others, token="writer")
ituning("push, privately over it", *pushed, "org/closed", "--private", *others, token="writer")
ituning("push, own name", *pushed, "mine", *ids, token="writer")
"""
)

UNREACHABLE = (
    COMMANDS
    + """
ituning("push", "push", folder, "org/new", "--vision_model", "org/clip", "--text_model", "org/text")
"""
)


@pytest.fixture(scope="module")
def found(hub, client, captioners) -> dict[str, Any]:
    for name in ("captioner", "secret"):
        put_captioner(hub, f"org/{name}", captioners["a"], private=name == "secret")
    hub.repositories.create("org/empty")
    clip = hub.repositories.repositories["org/clip"].at("main").files
    weights = clip["model.safetensors"]
    header = weights[: 8 + int.from_bytes(weights[:8], "little")]
    other = header.ljust(len(weights), b"\x2f")
    hub.repositories.create("org/other").commit("main", clip | {"model.safetensors": other})
    text = hub.repositories.repositories["org/text"].at("main").files
    hub.repositories.create("org/private-text", private=True).commit("main", text)
    hub.repositories.create("org/gated-clip").commit("main", clip)
    hub.repositories.repositories["org/gated-clip"].gated = "auto"
    return client().run(ACCESS, captioners["a"], captioners["picture"], package=True)


def test_captions_by_id(found, captioners):
    code, output, errors = found["caption"]
    assert (code, errors) == (0, "")
    assert output.startswith(str(captioners["picture"]) + "\t")
    assert found["private, own"] == found["caption"]


def test_info_by_id(found, hub):
    code, output, _ = found["info"]
    about = json.loads(output)
    assert code == 0
    assert about["text_model"]["name_or_path"] == "org/text"
    assert about["text_model"]["revision"] == hub.repositories.repositories["org/text"].at("main").sha


PRIVATE = "on the Hub: the Hub has no such repository, or it is private: give a token that may read it"
HARMLESS = "and pushing again does no harm"
TOLD = {
    "no such id": f"There is no captioner at 'org/none': there is no such folder, and as an id {PRIVATE}",
    "no such revision": "There is no captioner at 'org/captioner': there is no such folder, and as an id on "
    "the Hub: the Hub's repository has no such revision",
    "no captioner": "'org/clip' holds a model of type 'clip', expected 'ituning'",
    "no config": "There is no captioner at 'org/empty'",
    "private": f"There is no captioner at 'org/secret': there is no such folder, and as an id {PRIVATE}",
    "private, of others": "There is no captioner at 'org/secret'",
    "bad token": "the Hub wants a token that is valid",
    "push, no token": f"was not pushed to 'org/new', {HARMLESS}: the Hub wants a token that is valid (`hf "
    "auth login`, or HF_TOKEN in the environment)",
    "push, bad token": "the Hub wants a token that is valid",
    "push, of others": f"was not pushed to 'org/captioner', {HARMLESS}: the token may not do this: You don't "
    'have the rights to write under the namespace "org"; give one that may write there',
    "push, no such place": "the frozen vision model cannot be had from 'org/none': the Hub has no such",
    "push, another model": "The vision model 'org/other' on the Hub is not the one this adapter was trained",
    "push, public": "'org/captioner' was there already and is public, and nothing was pushed",
    "push, no name": "Repo id must be in the form",
}


@pytest.mark.parametrize("name", TOLD)
def test_what_goes_wrong_is_told_in_one_line(found, name: str):
    code, output, errors = found[name]
    assert (code, output) == (2, "")
    assert errors.startswith("ituning: error: ")
    assert errors.count("\n") == 1
    assert TOLD[name] in errors
    assert ".." not in errors.replace("...", "")


def test_a_name_without_a_namespace_is_the_users_own(found, hub):
    assert f"{hub.endpoint}/ann/mine at commit" in found["push, own name"][1]


@pytest.mark.parametrize(
    ("token", "told"),
    [("None", "or it is private"), ("nonsense", "that is valid"), ("reader", "it is private")],
)
def test_a_private_captioner_in_the_cache_without_its_token(found, token: str, told: str):
    code, output, errors = found[f"cached, {token}"]
    assert (code, output) == (2, "")
    assert errors.startswith("ituning: error: The processor of 'org/secret' cannot be had: the Hub ")
    assert told in errors
    assert "save it beside" not in errors
    assert found["info, cached"][0] == 0


def test_a_public_captioner_over_models_that_not_all_may_load(found):
    rest = "whoever has no access to it cannot load this public captioner"
    code, output, errors = found["push, over what not all may load"]
    assert (code, "org/open at commit" in output) == (0, True)
    assert errors == f"org/gated-clip is gated: {rest}\norg/private-text is private: {rest}\n"
    assert found["push, privately over it"][2] == found["push, own name"][2] == ""


def test_nothing_was_written_where_it_was_refused(found, hub):
    assert "org/new" not in hub.repositories.repositories
    assert len(hub.repositories.repositories["org/captioner"].commits) == 2


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(client, captioners):
    user = client(endpoint="http://127.0.0.1:9")
    found = user.run(UNREACHABLE, captioners["a"], captioners["picture"], package=True)
    code, _, errors = found["push"]
    assert code == 2
    assert errors.count("\n") == 1
    assert (
        "the frozen vision model cannot be had from 'org/clip': http://127.0.0.1:9 cannot be reached"
        in errors
    )
