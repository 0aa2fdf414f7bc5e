"""CLIPScore against a naive reference, on a small full CLIP of the real class."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from small_models import IMAGE_SIZE, save_full_clip
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from ituning_hf.data.images import UnreadableImageError
from ituning_hf.evaluation.clip_score import clip_scores
from ituning_hf.utils.errors import UserError

PREDICTIONS = ["a dog", "two cats sleep", "", "red", "zzz xxx qqq www vvv", "a very long caption " * 40]
REFERENCES = [
    ["a dog runs", "Dogs"],
    ["Two cats"],
    ["nothing"],
    ["red", "a red one", "blue"],
    ["k"],
    ["z"] * 7,
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_full_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of random images of different shapes and colours."""
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for index in range(len(PREDICTIONS)):
        generator = torch.Generator().manual_seed(index)
        height, width = 20 + 7 * index, 50 - 3 * index
        pixels = (
            torch.rand((height, width, 3), generator=generator) * 255 * torch.rand(3, generator=generator)
        )
        paths.append(str(folder / f"{index}.png"))
        Image.fromarray(pixels.byte().numpy()).save(paths[-1])
    return paths


def naive(clip: str, images: list[str]) -> tuple[list[float], list[float]]:
    """The paper's formulas, one image and one text at a time."""
    model = CLIPModel.from_pretrained(clip)
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    processor = CLIPImageProcessorPil.from_pretrained(clip)

    def text(caption: str) -> torch.Tensor:
        ids = tokenizer(f"A photo depicts {caption}", truncation=True, max_length=77, return_tensors="pt")
        return model.get_text_features(**ids).pooler_output[0]

    def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
        return max(float(first @ second / (first.norm() * second.norm())), 0)

    scores, with_references = [], []
    for path, caption, references in zip(images, PREDICTIONS, REFERENCES, strict=True):
        pixels = processor(Image.open(path), return_tensors="pt")["pixel_values"]
        score = 2.5 * cosine(model.get_image_features(pixels).pooler_output[0], text(caption))
        nearest = max(cosine(text(caption), text(reference)) for reference in references)
        scores.append(score)
        with_references.append(2 / (1 / score + 1 / nearest) if score and nearest else 0)
    return scores, with_references


@torch.no_grad()
def test_agreement_with_a_naive_computation(clip: str, images: list[str]):
    scores, with_references = naive(clip, images)
    assert 0 < sum(score > 0 for score in scores) < len(scores)  # negative cosines are cut at 0
    for batch_size in (1, 4, 64):
        found = clip_scores(clip, images, PREDICTIONS, REFERENCES, batch_size=batch_size)
        assert list(found) == ["clip_score", "ref_clip_score"]
        assert found["clip_score"] == pytest.approx(scores, abs=1e-5)
        assert found["ref_clip_score"] == pytest.approx(with_references, abs=1e-5)


def test_open_images_and_images_that_cannot_be_read(clip: str, images: list[str], tmp_path: Path):
    opened = [Image.open(path) for path in images]
    found = clip_scores(clip, opened, PREDICTIONS, REFERENCES, device="cpu")
    assert found == clip_scores(clip, images, PREDICTIONS, REFERENCES, device="cpu")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg"):
        clip_scores(clip, [*images[:5], str(tmp_path / "broken.jpg")], PREDICTIONS, REFERENCES)


def test_missing_captions_are_refused(clip: str, images: list[str]):
    with pytest.raises(UserError, match=r"references\[0\] is empty"):
        clip_scores(clip, images, PREDICTIONS, [[], *REFERENCES[1:]])


def test_a_clip_without_text_model_is_refused(clip: str, images: list[str], tmp_path: Path):
    model = CLIPModel.from_pretrained(clip)
    vision = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith("text_model")
    }
    model.save_pretrained(tmp_path, state_dict=vision)
    CLIPTokenizer.from_pretrained(clip).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size=IMAGE_SIZE).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks \d+ weights of a full CLIP \(first: \['text_model"):
        clip_scores(str(tmp_path), images, PREDICTIONS, REFERENCES)
    with pytest.raises(OSError, match=r"no full CLIP .* at '/nowhere'"):
        clip_scores("/nowhere", images, PREDICTIONS, REFERENCES)
