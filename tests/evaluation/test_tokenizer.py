"""The Python tokenizer: pinned cases, properties, and the output of the official one."""

# ruff: noqa: RUF001 -- similar characters are intended in this file

import itertools
import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from properties import examples
from small_models import SHARED_DATA

from ituning_hf.data.scenes import read_scenes
from ituning_hf.evaluation.java import find_java, tokenize_with_java
from ituning_hf.evaluation.tokenizer import PUNCTUATION, tokenize_captions

# The official tokenizer's output for each.
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
    "a :) b :O": "a :-rrb- b :o",
    "a\nb\r\nc\td": "a b c d",
    "don`t, O`Neil, ma`am": "do n`t o`neil ma`am",
    "an R+B band, A+B, a+b": "an r+b band a+b a + b",
    "on youtube.com/watch or 2.jpg": "on youtube.com/watch or 2.jpg",
    "@bbc2 at the end._two": "@bbc2 at the end _ two",
    "<b>bold</b> <a@b.org> >>": "<b> bold </b> <a@b.org> >>",
    "in the '80S": "in the '80s",
}

# The official tokenizer looks at the next caption.
SEQUENCE = ["vitamin C.", "A dog", "vitamin C.", "a dog", "no.", "5 dogs", "", "the letter B.", "", "Two"]
SEQUENCE_TOKENS = "vitamin c|a dog|vitamin c.|a dog|no.|5 dogs||the letter b.||two".split("|")  # noqa: SIM905

WORDS = """
    a dog Dogs MAN woman's can't won't it's it’s I'm they're he'd O'Neil 'em y'all rock'n'roll dogs'
    o'clock cannot gonna 'tis t-shirt close-up black-and-white jack-o'-lantern x-ray café Ñandú naïve Zürich
    é 狗 собака 🙂 R&B AT&T a&b A&B and/or a/b w/ red/white Mr. St. U.S. a.m. p.m. etc. T.V. Jan. No. no.
    no._5 Dr. vs. e.g. Ph.D. J.R. C. 5 12 1,000 3.5 1/2 1_1/2 ½ 5:30 12-inch 6'2" 1950's '80s 50% 5% $5 £5
    #1 2nd 4x4 100th 10-20 90° ° &amp; <b> www.a.com http://a.b/c a@b.com a.jpg @bbc :) ™ … – — -
""".split()  # noqa: SIM905
SIGNS = ["...", "..", ". . .", "--", '"', "``", "‘x’", "“x”", "(x)", "[x]", "!!", "?!", "*", "_", "+", "@"]
WORDS = [word.replace("_", " ") for word in WORDS]
HOSTILE = [
    f"{before}{word}{after}"
    for word in WORDS + SIGNS
    for before in ["", "a ", '"', "("]
    for after in ["", " b", ".", ",", ", The", "'s"]
]

QUOTES = ["()", "[]", '""', "“”", "''", "‘’", ("``", "''")]
AFTER = [".", ",", "!", "?", "...", ";", ":", "'s", "?!", ' "', "--", " -", " .", ".,", ".;"]
BETWEEN = [" ", "  ", ", ", " - ", "\t", ";", "/", "\n"]
PAIRS = [f"{word} b {word}{end} c" for word in WORDS if word != "http://a.b/c" for end in AFTER] + [
    *("at AT&T.; or", "12 o'clock., or", "a U.S.-based., or", "No.  5 and no. 5", "a C. <b> b", "$5 1/2")
]


def random_captions(count: int) -> list[str]:
    """Captions of words with quotes and punctuation, in the same order each time."""
    dice = random.Random(0)

    def piece() -> str:
        word = dice.choice(WORDS)
        if dice.random() < 0.5:
            return word + " "
        before, after = dice.choice([("", ""), *QUOTES])
        return before + word + after + dice.choice(["", *AFTER]) + dice.choice(BETWEEN)

    return ["".join(piece() for _ in range(dice.randint(0, 6))) for _ in range(count)]


def human_captions() -> list[str]:
    """Captions of photographs; none without the shared data."""
    if not SHARED_DATA.is_dir():
        return []
    folder = SHARED_DATA / "caption-metrics"
    references = json.loads((folder / "f8k_human_refs.json").read_text())["annotations"]
    results = json.loads((folder / "f8k_human_results.json").read_text())
    mini = json.loads((SHARED_DATA / "flickr8k-mini" / "dataset_flickr8k_mini.json").read_text())
    captions = [item["caption"] for item in references + results]
    return captions + [sentence["raw"] for image in mini["images"] for sentence in image["sentences"]]


def tokenize_caption(caption: str) -> str:
    return tokenize_captions([caption])[0]


def separated(captions: list[str]) -> list[str]:
    """Put a caption after each that leaves a last full stop as it is."""
    return [line for caption in captions for line in (caption, "The end")]


@pytest.mark.parametrize("caption", CASES)
def test_pinned_cases(caption: str):
    assert tokenize_caption(caption) == CASES[caption]


def test_the_next_caption_decides_about_a_last_full_stop():
    assert tokenize_captions(SEQUENCE) == SEQUENCE_TOKENS
    assert tokenize_captions([]) == []


@pytest.fixture(scope="module")
def official() -> dict[str, tuple[list[str], list[str]]]:
    """Captions and the official tokenizer's output for them, from one Java process."""
    java = find_java()
    if java is None:
        pytest.skip("no Java on the PATH to run the official tokenizer")
    generated = random_captions(400)
    texts = {
        "pinned cases": separated([*CASES]),
        "sequence": SEQUENCE,
        "hostile": separated(HOSTILE),
        "scenes": [caption for scene in read_scenes("train", 300) for caption in scene.captions],
        "human": human_captions(),
        "pairs": PAIRS,
        "generated": generated,
        "tokens": tokenize_captions([*PAIRS, "The end", *generated]),
    }
    lines = iter(tokenize_with_java([*itertools.chain(*([*own, "The end"] for own in texts.values()))], java))
    return {name: (own, list(itertools.islice(lines, len(own) + 1))[:-1]) for name, own in texts.items()}


@pytest.mark.parametrize(
    "name", ["pinned cases", "sequence", "hostile", "scenes", "human", "pairs", "generated", "tokens"]
)
def test_agreement_with_the_official_tokenizer(official: dict[str, tuple[list[str], list[str]]], name: str):
    captions, expected = official[name]
    if name == "human" and not captions:
        pytest.skip(f"no captions at {SHARED_DATA}")
    found = tokenize_captions([*captions, "The end"])[:-1]
    differences = [pair for pair in zip(captions, expected, found, strict=True) if pair[1] != pair[2]]
    assert differences == []


def test_the_pinned_output_is_the_official_one(official: dict[str, tuple[list[str], list[str]]]):
    assert official["pinned cases"][1][::2] == list(CASES.values())
    assert official["sequence"][1] == SEQUENCE_TOKENS


def test_tokens_of_human_captions_stay_as_they_are():
    """Not true of every string, for either tokenizer, but of human captions of photographs."""
    captions = human_captions()[::5]
    if not captions:
        pytest.skip(f"no captions at {SHARED_DATA}")
    assert len(captions) == 1875
    assert all(tokenize_caption(text) == text for text in map(tokenize_caption, captions))


@given(st.lists(st.text(st.characters(codec=None)), max_size=5))
@example(["0\u16800"])  # a space among letters
@examples(100, 3000)
def test_any_captions_give_as_many_lines_of_tokens_without_punctuation(captions: list[str]):
    tokenized = tokenize_captions(captions)
    assert len(tokenized) == len(captions)
    for caption, line in zip(captions, tokenized, strict=True):
        assert len(line.splitlines()) <= 1
        assert line == line.lower()
        for token in line.split(" ") if line else []:
            assert token
            assert token not in PUNCTUATION
            assert len(token.replace("\xa0", "").split()) == 1  # no other space in a token
        # The next caption only decides about a last full stop.
        assert line.removesuffix(".") == tokenize_caption(caption).removesuffix(".")
