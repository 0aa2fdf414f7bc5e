"""Compare the Python tokenizer of the caption metrics with the official Java tokenizer, caption by caption.

    python examples/compare_tokenizers.py captions_val2014.json dataset_flickr8k.json texts.txt
    python examples/compare_tokenizers.py --num_scenes 2000 --perturb captions.json

Reads COCO annotations and results, datasets in the Karpathy format, and text files with one caption a line.
Needs Java and pycocoevalcap.
"""

# ruff: noqa: RUF001 -- similar-looking characters are test data here

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ituning_hf.data.scenes import read_scenes
from ituning_hf.evaluation.java import find_java, tokenize_with_java
from ituning_hf.evaluation.tokenizer import tokenize_captions


def read_captions(path: Path) -> list[str]:
    """Read every caption of a file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [*_captions_in(json.loads(text))] if path.suffix == ".json" else text.splitlines()


def _captions_in(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        for key in ("caption", "raw"):
            if isinstance(content.get(key), str):
                yield content[key]
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            yield from _captions_in(item)


_INSERTED = """
    Mr. Mrs. Dr. St. U.S. U.S.A. t.v. T.V. TV. a.m. p.m. P.M. etc. e.g. i.e. vs. No. Jr. Inc. Ave. approx.
    1 2.5 1,000 50% $5 #1 1/2 ½ 5:30 12-inch 6'2" 1950's '80s 3rd 2nd. 10th 4x4 3-D 7UP C. B x-ray
    cannot can't CAN'T gonna y'all o'clock rock'n'roll 'em 'tis t-shirt T-shirts well-dressed jack-o-lantern
    close-up. 🙂 👍🏽 ❤️ é naïve café ° ™ … — – - * ~ = + < > & @home #dog a.k.a. w/ b/w and/or :) ;-) xoxo
    www.flickr.com http://a.org/b?c me@b.org <b> &amp; %20 ½-full a.b.c. Ph.D. D.C. L.A. N.Y. -5 (5) 'A' I
    """.split()  # noqa: SIM905

# Changes of one word that occur in human captions.
_CHANGES: list[Callable[[random.Random, str], str]] = [
    lambda dice, word: word.upper(),
    lambda dice, word: word.capitalize(),
    lambda dice, word: (
        word + dice.choice([".", ",", "!", "?", "...", ";", ":", " .", "..", " -", "--", " ,"])
    ),
    lambda dice, word: dice.choice(['"{}"', "'{}'", "“{}”", "‘{}’", "({})", "[{}]", "``{}''"]).format(word),
    lambda dice, word: word + dice.choice(["'s", "’s", "s'", "n't", "'ll", "'d", "in'", "'re", "`s"]),
    lambda dice, word: word + dice.choice("-/&,.'_+@") + dice.choice(["white", "two", "The", "5", "in-hand"]),
    lambda dice, word: f"{word} {dice.choice(_INSERTED)}",
    lambda dice, word: f"{dice.choice(_INSERTED)} {word}",
]


def perturb(captions: Sequence[str], seed: int = 0) -> list[str]:
    """Change one or two words of each caption at random."""
    dice = random.Random(seed)
    changed = []
    for caption in captions:
        words = caption.split() or ["a"]
        for _ in range(dice.randint(1, 2)):
            index = dice.randrange(len(words))
            words[index] = dice.choice(_CHANGES)(dice, words[index])
        changed.append(" ".join(words))
    return changed


def compare(name: str, captions: Sequence[str], limit: int) -> None:
    """Tokenize captions both ways and print how many results differ, with the first differences."""
    java = find_java()
    if java is None:
        raise SystemExit("The official tokenizer needs Java, which is not on the PATH.")
    both = zip(captions, tokenize_with_java(captions, java), tokenize_captions(captions), strict=True)
    different = [(caption, official, ours) for caption, official, ours in both if official != ours]
    print(f"{name}: {len(different)} of {len(captions):,} captions differ")
    for caption, official, ours in different[:limit]:
        print(f"  caption  {caption!r}\n  official {official!r}\n  Python   {ours!r}\n")


def main() -> None:
    """Compare the captions that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument(
        "--num_scenes", type=int, default=0, help="also compare the captions of this many drawn scenes"
    )
    parser.add_argument(
        "--perturb", action="store_true", help="also compare all captions with words changed at random"
    )
    parser.add_argument(
        "--show", type=int, default=20, help="differences to print for each file (default: 20)"
    )
    options = parser.parse_args()
    texts = {str(path): read_captions(path) for path in options.files}
    if options.num_scenes:
        scenes = read_scenes("train", options.num_scenes)
        texts["drawn scenes"] = [caption for scene in scenes for caption in scene.captions]
    for name, captions in texts.items():
        compare(name, captions, options.show)
        if options.perturb:
            compare(f"{name}, changed", perturb(captions), options.show)


if __name__ == "__main__":
    main()
