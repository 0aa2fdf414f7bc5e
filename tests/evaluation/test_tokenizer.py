"""The Python tokenizer: pinned cases, properties, and the official one as the judge."""

# ruff: noqa: RUF001 -- signs that look alike are what this file is about

import doctest
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_models import SHARED_DATA

from ituning_hf.data.scenes import read_scenes
from ituning_hf.evaluation import tokenizer
from ituning_hf.evaluation.java import Java, find_java, tokenize_with_java
from ituning_hf.evaluation.tokenizer import PUNCTUATION, tokenize_caption, tokenize_captions

# What the official tokenizer gives for each, found by running it.
CASES = {
    "": "",
    " . ": "",
    "A Dog runs .": "a dog runs",
    "a toilet,sink and tub": "a toilet sink and tub",
    "two dogs.One cat": "two dogs.one cat",
    "A man's dog can't swim; it'll drown, won't it?": "a man 's dog ca n't swim it 'll drown wo n't it",
    "CAN'T cannot gonna 'tis": "ca n't can not gon na 't is",
    "the kids' o'clock o'neil l'eau": "the kids o'clock o'neil l'eau",
    "rock 'n' roll in the '80s and 1950's": "rock 'n' roll in the '80s and 1950 's",
    "a close-up, black-and-white": "a close-up black-and-white",
    "a hat,white-haired man": "a hat,white-haired man",
    "a dog -- wet - and–happy": "a dog wet and happy",
    "at 5:30 p.m. for $5.50": "at 5:30 p.m. for $ 5.50",
    "1/2 of 1 1/2 and ½": "1/2 of 1\xa01/2 and 1/2",
    "1,000 or 50% of #1": "1,000 or 50 % of # 1",
    "Mr. Smith of St. John, U.S. army": "mr. smith of st. john u.s. army",
    "on a t.v. in Jan. with Jun. and Inc.": "on a t.v. in jan. with jun. and inc.",
    "No. 5 or no.": "no. 5 or no",
    "vitamin C. The bottle": "vitamin c the bottle",
    "a cat... a b . . . c": "a cat a b c",
    "a (small) [red] {x}": "a -lrb- small -rrb- -lsb- red -rsb- -lcb- x -rcb-",
    "\"quoted\" ''x'' `y' “don’t” ‘z’": "quoted x y do n't z",
    "Wow!! What??": "wow !! what ??",
    "a/b and red/white/blue w/ x": "a/b and red/white/blue w / x",
    "R&B at AT&T, m & m": "r&b at at&t m & m",
    "www.flickr.com, http://a.org/b?c=1. me@b.org": "www.flickr.com http://a.org/b?c=1 me@b.org",
    "café Ñandú 🙂 90°": "café ñandú 90 °",
    "a :) b": "a :-rrb- b",
    "a\nb\r\nc\td": "a b c d",
    "don`t, O`Neil, ma`am": "do n`t o`neil ma`am",
    "an R+B band, A+B, a+b": "an r+b band a+b a + b",
    "on youtube.com/watch or 2.jpg": "on youtube.com/watch or 2.jpg",
    "@bbc2 at the end._two": "@bbc2 at the end _ two",
    "<b>bold</b> <a@b.org> >>": "<b> bold </b> <a@b.org> >>",
    "in the '80S": "in the '80s",
}

HOSTILE = [
    f"{before}{piece}{after}"
    for piece in [
        *(
            "can't",
            "gonna",
            "'tis",
            "o'clock",
            "it’s",
            "'em",
            "dogs'",
            "rock'n'roll",
            "y'all",
            "jack-o'-lantern",
        ),
        *(
            "$5",
            "5%",
            "#1",
            "£5",
            "1/2",
            "1 1/2",
            "3.5",
            "1,000",
            "5:30",
            "12-inch",
            "6'2\"",
            "1950's",
            "'80s",
        ),
        *(
            "Mr.",
            "U.S.",
            "a.m.",
            "etc.",
            "e.g.",
            "Ph.D.",
            "no. 5",
            "J.R.",
            "...",
            "..",
            ". . .",
            "--",
            "—",
            "-",
        ),
        *(
            '"',
            "``",
            "‘x’",
            "“x”",
            "(x)",
            "[x]",
            "a/b",
            "and/or",
            "a&b",
            "A&B",
            "!!",
            "?!",
            "*",
            "_",
            "+",
            "@",
        ),
        *(
            "🙂",
            "é",
            "naïve",
            "½",
            "°",
            "™",
            "www.a.com",
            "http://a.b/c",
            "a@b.com",
            "<b>",
            ":)",
            "&amp;",
            "word",
        ),
    ]
    for before in ["", "a ", '"', "("]
    for after in ["", " b", ".", ",", ", The", "'s"]
]


def java_or_skip() -> Java:
    java = find_java()
    if java is None:
        pytest.skip("no Java on the PATH to run the official tokenizer")
    return java


@pytest.mark.parametrize("caption", CASES)
def test_pinned_cases(caption: str):
    assert tokenize_caption(caption) == CASES[caption]


def test_pinned_cases_are_the_official_ones():
    # between captions that begin with "The": the original looks at the next line
    lines = [line for caption in CASES for line in (caption, "The end")]
    assert tokenize_with_java(lines, java_or_skip())[::2] == list(CASES.values())


def test_the_next_caption_decides_about_a_last_full_stop():
    captions = ["vitamin C.", "A dog", "vitamin C.", "a dog", "no.", "5 dogs", "", "the letter B.", "", "Two"]
    expected = ["vitamin c", "a dog", "vitamin c.", "a dog", "no.", "5 dogs", "", "the letter b.", "", "two"]
    assert tokenize_captions(captions) == expected
    assert tokenize_captions([]) == []
    assert tokenize_with_java(captions, java_or_skip()) == expected


def test_hostile_strings_agree_with_the_official_tokenizer():
    lines = [line for caption in HOSTILE for line in (caption, "The end")]
    official = tokenize_with_java(lines, java_or_skip())[::2]
    differences = {
        caption: (expected, got)
        for caption, expected, got in zip(HOSTILE, official, map(tokenize_caption, HOSTILE), strict=True)
        if expected != got
    }
    assert differences == {}


def test_scene_captions_agree_with_the_official_tokenizer():
    captions = [caption for scene in read_scenes("train", 600) for caption in scene.captions]
    assert tokenize_with_java(captions, java_or_skip()) == tokenize_captions(captions)


def test_human_captions_agree_with_the_official_tokenizer():
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no captions at {SHARED_DATA}")
    folder = SHARED_DATA / "caption-metrics"
    captions = [
        item["caption"] for item in json.loads((folder / "f8k_human_refs.json").read_text())["annotations"]
    ]
    captions += [item["caption"] for item in json.loads((folder / "f8k_human_results.json").read_text())]
    mini = json.loads((SHARED_DATA / "flickr8k-mini" / "dataset_flickr8k_mini.json").read_text())
    captions += [sentence["raw"] for image in mini["images"] for sentence in image["sentences"]]
    assert len(captions) == 9375
    assert tokenize_with_java(captions, java_or_skip()) == tokenize_captions(captions)
    # not true of every string, for either tokenizer, but of what people write of photographs
    assert all(tokenize_caption(text) == text for text in map(tokenize_caption, captions))


@given(st.text())
@example("0\u16800")  # a space among letters
def test_any_string_gives_tokens_in_lower_case_without_punctuation(caption: str):
    tokenized = tokenize_caption(caption)
    assert tokenized == tokenized.lower()
    for token in tokenized.split(" ") if tokenized else []:
        assert token
        assert token not in PUNCTUATION
        assert len(token.replace("\xa0", "").split()) == 1  # no other space in a token


@given(
    st.lists(st.from_regex(r"[a-z]{2,8}(-[a-z]{2,8})?", fullmatch=True)),
    st.sampled_from([" ", " , ", "; ", "! "]),
)
def test_words_with_simple_punctuation_keep_to_themselves(words: list[str], between: str):
    tokenized = tokenize_caption(between.join(words))
    assert tokenize_caption(tokenized) == tokenized
    assert tokenized.replace(" ", "") == "".join(words)


def test_docstring_example_runs():
    results = doctest.testmod(tokenizer)
    assert (results.attempted, results.failed) == (1, 0)
