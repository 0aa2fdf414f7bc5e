"""The Python tokenizer against the official one, over texts of all that captions have been seen to hold."""

# ruff: noqa: RUF001 -- signs that look alike are what this file is about

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from properties import examples

from ituning_hf.evaluation.java import Java, find_java, tokenize_with_java
from ituning_hf.evaluation.tokenizer import tokenize_caption, tokenize_captions

WORDS = [
    *("a", "dog", "Dogs", "MAN", "woman's", "can't", "won't", "it's", "I'm", "they're", "he'd", "O'Neil"),
    *(
        "o'clock",
        "cannot",
        "gonna",
        "t-shirt",
        "close-up",
        "black-and-white",
        "café",
        "Ñandú",
        "naïve",
        "Zürich",
    ),
    *("x-ray", "dogs'", "rock'n'roll", "狗", "собака", "🙂", "R&B", "AT&T", "and/or", "w/", "red/white"),
    *("St.", "Mr.", "U.S.", "a.m.", "p.m.", "etc.", "T.V.", "Jan.", "No.", "no.", "Dr.", "vs.", "e.g.", "C."),
    *("5", "12", "1,000", "3.5", "1/2", "½", "5:30", "1950's", "'80s", "50%", "$5", "#1", "2nd", "4x4"),
    *("100th", "10-20", "90°", "&amp;", "<b>", "www.a.com", "a.jpg", "@bbc", ":)", "™", "…", "–", "—", "-"),
]
QUOTES = ["()", "[]", '""', "“”", "''", "‘’", ("``", "''")]
AFTER = [".", ",", "!", "?", "...", ";", ":", "'s", "?!", ' "', "--", " -", " .", ".,", ".;"]
BETWEEN = [" ", "  ", ", ", " - ", "\t", ";", "/", "\n"]


@st.composite
def pieces(draw: st.DrawFn) -> str:
    """A word, plain half of the time, and what follows it."""
    word = draw(st.sampled_from(WORDS))
    if draw(st.booleans()):
        return word + " "
    before, after = draw(st.just(("", "")) | st.sampled_from(QUOTES))
    end = draw(st.just("") | st.sampled_from(AFTER))
    return before + word + after + end + draw(st.sampled_from(BETWEEN))


CAPTIONS = st.lists(pieces(), max_size=6).map("".join)


@pytest.fixture(scope="module")
def java() -> Java:
    found = find_java()
    if found is None:
        pytest.skip("no Java on the PATH to run the official tokenizer")
    return found


@given(captions=st.lists(CAPTIONS, min_size=10, max_size=40))
@example(captions=[f"{word} b {word}{end} c" for word in WORDS for end in AFTER])
@example(
    captions=[
        "at AT&T.; or",
        "12 o'clock., or",
        "a U.S.-based., or",
        "No.  5 and no. 5",
        "a C. <b> b",
        "$5 1/2",
    ]
)
@examples(5, 40)
def test_captions_and_what_is_made_of_them_agree_with_the_official_tokenizer(java: Java, captions: list[str]):
    tokenized = tokenize_captions(captions)
    twice = tokenize_captions(tokenized)
    lines = [*captions, "The end", *tokenized]
    expected = tokenize_with_java(lines, java)
    assert [*tokenized, *twice] == [*expected[: len(captions)], *expected[len(captions) + 1 :]]


@given(st.lists(st.text(st.characters(codec=None)) | CAPTIONS, max_size=5))
@examples(100, 3000)
def test_every_caption_has_its_line_whatever_it_holds(captions: list[str]):
    tokenized = tokenize_captions(captions)
    assert len(tokenized) == len(captions)
    for caption, line in zip(captions, tokenized, strict=True):
        assert len(line.splitlines()) <= 1
        # The next caption decides about no more than a last full stop.
        assert line.removesuffix(".") == tokenize_caption(caption).removesuffix(".")
