"""`explain` against the model's own attention weights, the real image processors, Pillow and Matplotlib."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_families import ENCODERS, SmallFamilies
from small_models import randomize_adapters

from ituning_hf import Explanation, ITuningForCaptioning, ITuningProcessor, explain
from ituning_hf.captioner.processing_ituning import load_image_processor
from ituning_hf.cli import main
from ituning_hf.inference.captioning import caption
from ituning_hf.inference.explain import seen_box, tokens_of_words
from ituning_hf.utils.errors import UserError
from ituning_hf.utils.terminal import printable

TEXT = "A dog;) runs, slowly."
WORDS = ["A", "dog", ";", ")", "runs", ",", "slowly", "."]
HOSTILE = '</script><img src=x onerror="alert(1)"> & a dog.'


def photo(width: int = 47, height: int = 31) -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 255, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def explanation(maps: Any, box: tuple[int, int, int, int], size: tuple[int, int], text: str) -> Explanation:
    return Explanation(
        image=Image.new("RGB", size, "green"),
        caption=text,
        words=text.split(),
        maps=np.array(maps, dtype=np.float32),
        box=box,
        layers=[1],
    )


def naive_maps(model: Any, processor: Any, layers: list[int]) -> np.ndarray:
    """Compute the maps of TEXT with loops over words, tokens, layers and heads."""
    inputs = processor(images=photo(), captions=[TEXT], return_tensors="pt")
    weights = model.visual_attention(inputs["input_ids"], inputs["pixel_values"])[0]  # (layers, h, T, N)
    pieces = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, 1:-1].tolist())
    covered, position = [], 0  # the characters of each token; each piece is as long as its text
    for piece in pieces:
        covered.append(range(position, position + len(piece)))
        position += len(piece)
    maps, end = [], 0
    for word in WORDS:
        start = TEXT.index(word, end)
        end = start + len(word)
        tokens = [t for t, characters in enumerate(covered) if set(characters) & set(range(start, end))]
        total = np.zeros((3, 3))
        for token in tokens:
            for layer in layers:
                for head in range(weights.shape[1]):
                    row = weights[list(model.config.adapter_layers).index(layer), head, token]
                    total += row[-9:].reshape(3, 3).numpy()
        maps.append(total / (len(tokens) * len(layers) * weights.shape[1]))
    return np.stack(maps)


def test_the_map_of_a_word_is_the_mean_over_its_tokens_heads_and_layers(captioner, processor):
    assert list(captioner.config.adapter_layers) == [0, 1, 2, 3]
    found = explain(captioner, photo(), processor, text=TEXT)
    assert found.words == WORDS
    assert found.layers == [0, 1, 2, 3]
    np.testing.assert_allclose(
        found.maps, naive_maps(captioner, processor, found.layers), rtol=1e-4, atol=1e-6
    )
    chosen = explain(captioner, photo(), processor, text=TEXT, layers=[3, 0])
    assert chosen.layers == [0, 3]
    np.testing.assert_allclose(chosen.maps, naive_maps(captioner, processor, [0, 3]), rtol=1e-4, atol=1e-6)


def test_a_chinese_character_is_a_word(captioner, processor):
    found = explain(captioner, photo(), processor, text="a \u72d7\u8dd1\uff0ctree\u3002")
    assert found.words == ["a", "\u72d7", "\u8dd1", "\uff0c", "tree", "\u3002"]


def test_a_word_has_the_attention_of_the_position_that_predicts_it(captioner, processor):
    """The begin token predicts the first word, whichever it is; its own position would attend elsewhere."""
    one, other = (explain(captioner, photo(), processor, text=text).maps for text in ("q", "z"))
    np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("decoder", ["gpt2", "opt", "llama", "qwen2", "gemma3"])
def test_the_tokens_of_a_word_decode_to_it(decoder: str, families: SmallFamilies):
    processor = ITuningProcessor.from_vision_text_pretrained(families["clip"], families[decoder])
    text = "two birds, ça 🐦🐦 <s> sit"
    words = ["two", "birds", ",", "ça", "🐦🐦", "<s>", "sit"]
    spans = [found.span() for found in re.finditer("|".join(words), text)]
    ids = processor.encode_captions([text])[0][1:-1]
    found = tokens_of_words(processor, text, spans)
    assert [processor.tokenizer.decode([ids[i] for i in tokens]).strip() for tokens in found] == words


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_maps_of_every_encoder_are_its_patches(encoder: str, families: SmallFamilies):
    pair = families[encoder], families["qwen2"]
    model = randomize_adapters(ITuningForCaptioning.from_vision_text_pretrained(*pair))
    processor = ITuningProcessor.from_vision_text_pretrained(*pair)
    found = explain(model, photo(), processor, text="a dog")
    inputs = processor(images=photo(), captions=["a dog"], return_tensors="pt")
    side = inputs["pixel_values"].shape[-1] // 10
    assert found.maps.shape == (2, side, side)
    weights = model.visual_attention(inputs["input_ids"], inputs["pixel_values"])[0][found.layers]
    np.testing.assert_allclose(
        found.maps[0].ravel(), weights[:, :, 0, -side * side :].mean((0, 1)), rtol=1e-4
    )


@pytest.mark.parametrize("size", [(90, 60), (41, 97), (200, 3)])
@pytest.mark.parametrize("encoder", ["clip", "deit", "dinov2", "siglip", "vit"])
def test_the_box_is_what_the_real_image_processor_keeps(
    encoder: str, size: tuple[int, int], families: SmallFamilies
):
    """Ramps along x and y tell which coordinates the first and last pixels come from."""
    image_processor = load_image_processor(families[encoder])
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    image = Image.fromarray((np.stack([x, y, 0 * x], -1) * 255).round().astype(np.uint8))
    options = {"do_normalize": False, "do_rescale": False, "return_tensors": "np"}
    pixels = image_processor(images=image, **options)["pixel_values"][0]
    left, top, right, bottom = seen_box(image_processor, image, *pixels.shape[1:])
    columns, rows = pixels[0].mean(axis=0) / 255 * width, pixels[1].mean(axis=1) / 255 * height
    middle = slice(3, -3)  # bicubic resampling changes the ends of a ramp
    for found, (low, high) in ((columns, (left, right)), (rows, (top, bottom))):
        expected = low + (np.arange(len(found)) + 0.5) * (high - low) / len(found)
        step = (high - low) / len(found)
        np.testing.assert_allclose(found[middle], expected[middle], atol=step + (width + height) / 255)


def test_a_contrast_is_what_exceeds_the_mean_of_all_words():
    maps = [[[0.5, 0.25]], [[0.5, 0.0]], [[0.5, 0.5]]]  # every word attends to the first patch
    found = explanation(maps, (0, 0, 4, 4), (4, 4), "a b c").contrasts
    np.testing.assert_allclose(found, [[[0, 0]], [[0, 0]], [[0, 0.25]]])
    np.testing.assert_allclose(explanation(maps[:1], (0, 0, 4, 4), (4, 4), "a").contrasts, maps[:1])


def test_a_heatmap_is_bicubic_inside_the_box_and_zero_outside():
    maps = [[[0.1, 0.2, 0.0], [0.0, 0.4, 0.1]]]
    heat = np.asarray(explanation(maps, (4, 0, 10, 8), (14, 8), "a").heatmap(0)).astype(int)
    assert heat.shape == (8, 14)
    assert heat[:, :4].max() == heat[:, 10:].max() == 0
    weights = Image.fromarray(np.array(maps[0], dtype=np.float32)).resize((6, 8), Image.Resampling.BICUBIC)
    expected = np.clip(np.asarray(weights) / np.asarray(weights).max(), 0, 1) * 255
    assert abs(heat[:, 4:10] - expected).max() <= 1
    half = explanation(maps, (4, 0, 10, 8), (14, 8), "a").heatmap(0, (7, 4))
    assert half.size == (7, 4)
    assert half.getextrema() == (0, 255)


def test_a_map_without_attention_is_empty():
    assert explanation([[[0, 0]]], (0, 0, 6, 4), (6, 4), "a").heatmap(0).getextrema() == (0, 0)


def test_a_picture_of_a_narrow_image_has_a_limited_height():
    assert explanation([[[1.0]]], (0, 0, 2, 5000), (2, 5000), "a").figure().get_size_inches()[1] < 10


@pytest.mark.parametrize("words", [1, 5])
def test_a_picture_shows_the_image_once_for_each_word(words: int, tmp_path: Path):
    text = " ".join(["$x^", "$", "\x15", "c", "d"][:words])  # neither formulas nor glyphs
    found = explanation(np.eye(words).reshape(words, 1, words), (0, 0, 50, 40), (50, 40), text)
    found.save(tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    with Image.open(tmp_path / "picture.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    greens = (pixels[..., 1] > pixels[..., 0] + 40).sum()  # of the image, under the darkest colour of a map
    assert (greens > 0) == (words > 1)
    assert [axis.get_title() for axis in found.figure().axes[:words]] == [
        printable(word) for word in text.split()
    ]


def test_a_page_is_complete_and_escapes_the_caption(captioner, processor, tmp_path: Path):
    found = explain(captioner, photo(), processor, text=HOSTILE)
    assert "".join(found.words) == HOSTILE.replace(" ", "")
    found.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == found.to_html()
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<img" not in page
    assert page.count("data:image/png;base64,") == len(found.words)
    assert page.count("data:image/jpeg;base64,") == 1
    assert not re.search(r"https?:", page)
    assert found._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')


def test_without_a_text_the_caption_is_generated(captioner, processor):
    search = {"num_beams": 2, "max_new_tokens": 5}
    found = explain(captioner, photo(), processor, prompt="a dog", **search)
    assert found.caption == caption(captioner, photo(), processor, prompt="a dog", **search)
    assert found.caption.startswith("a dog")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "  "}, "text to explain is empty"),
        ({"text": "a " * 60}, "tokens, expected at most 48"),
        ({"text": "a", "prompt": "b"}, "text and prompt"),
        ({"text": "a", "layers": [1, 4]}, r"layers is \[1, 4\], expected some of .*\[0, 1, 2, 3\]"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str, captioner, processor):
    with pytest.raises(UserError, match=message):
        explain(captioner, photo(), processor, **options)


def test_the_command_writes_a_page_named_after_the_image(
    saved_captioner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    photo().save("dog.jpg")
    argv = ["explain", "dog.jpg", "--model", str(saved_captioner), "--device", "cpu"]
    assert main([*argv, "--max_new_tokens", "5", "--num_beams", "2"]) == 0
    found = explain(saved_captioner, "dog.jpg", num_beams=2, max_new_tokens=5)
    assert capsys.readouterr().out.splitlines()[-1] == "Written to dog.html"
    assert Path("dog.html").read_text(encoding="utf-8") == found.to_html()
    assert main([*argv, "--text", "a dog", "--layers", "1", "--output", "x.pdf"]) == 0
    assert Path("x.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("image", "output", "message"),
    [
        ("dog.png", "x.doc", "ends in .html, .png"),
        ("dog.png", "no/x.html", "there is no folder"),
        ("cat.png", "x.html", "cannot read cat.png"),
        (".", "x.html", "it is a folder"),
    ],
)
def test_the_command_checks_its_files_first(
    image: str,
    output: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    photo().save("dog.png")
    assert main(["explain", image, "--model", "missing", "--output", output]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_picture_without_matplotlib_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(UserError, match=r"ituning_hf\[viz\]"):
        explanation([[[1.0]]], (0, 0, 4, 4), (4, 4), "a").save(tmp_path / "x.png")
