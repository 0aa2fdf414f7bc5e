"""Self-critical training: the captions it rewards, its gradient, and complete runs."""

import itertools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from processes import run_on_two
from runs import Settings, adapter, command, differences
from small_models import ADAPTER, VISION, randomize_adapters, read_log, store_features, train_until
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, GPT2Config, PreTrainedTokenizerFast

from ituning_hf import ITuningConfig, ITuningForCaptioning, ITuningProcessor
from ituning_hf.data.columns import CaptionedImage, CaptionedImages
from ituning_hf.data.dataset import CaptionItem
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.data import Batches, load_data
from ituning_hf.training.objectives import SelfCritical
from ituning_hf.training.run import train
from ituning_hf.utils.errors import UserError

WORDS = {"a": 0, "dog": 1, "runs": 2, "<end>": 3}
END = 3
# All captions of at most two tokens: those that end, and those that are cut off.
ENDING = [[END, *tokens, END] for n in (0, 1) for tokens in itertools.product(range(END), repeat=n)]
POLICY = ENDING + [[END, *tokens] for tokens in itertools.product(range(END), repeat=2)]

# --- Against an enumerated policy


@pytest.fixture
def make_objective(processor: ITuningProcessor) -> Callable[..., SelfCritical]:
    """Return a function that builds the objective of a captioner with four tokens."""

    def make(**settings: Any) -> SelfCritical:
        tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="a"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<end>")
        words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)
        sizes = {"vocab_size": 4, "n_embd": 22, "n_layer": 2, "n_head": 2, "n_positions": 8}
        text = GPT2Config(**sizes, bos_token_id=END, eos_token_id=END, initializer_range=0.1)
        config = ITuningConfig(vision_config=CLIPVisionConfig(**VISION), text_config=text, **ADAPTER)
        captioner = randomize_adapters(ITuningForCaptioning(config)).double().train()
        args = TrainArguments(objective="cider", init_from="run", max_caption_tokens=3, **settings)
        batches = Batches(
            args, ITuningProcessor(processor.image_processor, words), Accelerator(cpu=True), None
        )
        captions = [("a dog", "dog runs"), ("a dog runs",), ("a",)]
        images = [CaptionedImage(str(i), texts, b"") for i, texts in enumerate(captions)]
        return SelfCritical(batches, captioner, CaptionedImages.from_images(images))

    return make


def make_batch(images: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(images, 10, VISION["hidden_size"], generator=generator, dtype=torch.float64)
    captions = [[[END, 0, 1, END], [END, 1, 2, END]], [[END, 0, 1, 2, END]]]
    return {"visual_features": features, "indices": [*range(images)], "captions": captions[:images]}


def probabilities(objective: SelfCritical, batch: dict[str, Any]) -> torch.Tensor:
    """Compute the probability of each caption of `POLICY` for the first image."""
    ids = torch.tensor([row + [END] * (3 - len(row)) for row in POLICY])
    logits = objective.captioner(visual_features=batch["visual_features"][:1], input_ids=ids).logits
    log_p = logits.log_softmax(dim=-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    return torch.stack([log_p[i, : len(row) - 1].sum() for i, row in enumerate(POLICY)]).exp()


def gradients(objective: SelfCritical, value: torch.Tensor) -> list[torch.Tensor]:
    parameters = [p for p in objective.captioner.parameters() if p.requires_grad]
    return list(torch.autograd.grad(value, parameters))


@pytest.mark.parametrize(("baseline", "num_samples"), [("mean", 2), ("greedy", 1)])
def test_the_expected_gradient_is_that_of_the_expected_reward(
    make_objective, monkeypatch, baseline: str, num_samples: int
):
    settings = {"baseline": baseline, "num_samples": num_samples, "cross_entropy_weight": 0}
    objective = make_objective(sampling="random", **settings)
    batch = make_batch()
    p = probabilities(objective, batch)
    assert float(p.detach().sum()) == pytest.approx(1)
    rewards = torch.tensor(objective._rewards(0, POLICY))
    assert len(set(rewards.tolist())) > 4
    expected = gradients(objective, p @ rewards)
    greedy = objective._sample(batch["visual_features"], [0, 0, 0])[0][num_samples:]
    # Every tuple of captions is drawn for one image of a batch, with its probability as weight.
    drawn = list(itertools.product(range(len(POLICY)), repeat=num_samples))
    groups = [[POLICY[i] for i in indices] + greedy for indices in drawn]
    monkeypatch.setattr(objective, "_sample", lambda *_: groups)
    batch = {name: [value[0]] * len(drawn) for name, value in batch.items()}
    batch["visual_features"] = torch.stack(batch["visual_features"])
    inputs, _ = objective.share(batch, [7, num_samples], [0, 0, 0])
    weights = p.detach()[torch.tensor(drawn)].prod(dim=1).repeat_interleave(num_samples)
    inputs["label_weights"] = inputs["label_weights"] * weights[:, None]
    found = gradients(objective, -objective.captioner(**inputs).loss)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-2


def test_captions_are_sampled_from_the_captioners_own_probabilities(make_objective):
    objective = make_objective(sampling="random", baseline="greedy", num_samples=4000)
    own = objective.captioner.generation_config
    own.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, min_new_tokens=2, max_new_tokens=1)
    batch = make_batch()
    *sampled, greedy = objective._sample(batch["visual_features"], [0, 0, 0])[0]
    counts = Counter(map(tuple, sampled))
    found = torch.tensor([counts.pop(tuple(row), 0) for row in POLICY]) / len(sampled)
    assert not counts
    expected = probabilities(objective, batch).detach()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.03)
    assert len(expected[expected > 0.03]) > 4
    assert objective.captioner.generation_config is own
    begin = objective.captioner(visual_features=batch["visual_features"], input_ids=torch.tensor([[END]]))
    assert greedy[1] == int(begin.logits.argmax())


def test_samples_depend_on_the_position_in_the_step_and_not_on_the_batch(make_objective):
    objective = make_objective(sampling="random", num_samples=20)
    features = make_batch(2)["visual_features"]
    together = objective._sample(features, [5, 7, 2])
    alone = [objective._sample(features[i : i + 1], [5, 7, 2 + i])[0] for i in (0, 1)]
    assert together == alone
    others = [objective._sample(features, place) for place in ([6, 7, 2], [5, 8, 2], [5, 7, 3])]
    assert all(other != together for other in others)


def test_the_beams_are_the_most_likely_captions(make_objective):
    objective = make_objective(sampling="beams", num_samples=5)
    objective.captioner.generation_config.update(repetition_penalty=3.0, num_beams=2, max_new_tokens=1)
    batch = make_batch()
    log_p = probabilities(objective, batch).detach().log()
    lengths = torch.tensor([len(row) - 1 for row in POLICY])
    order = (log_p / lengths).argsort(descending=True)  # of 13 captions: 5 beams of 2 tokens omit none
    (found,) = objective._sample(batch["visual_features"], [0, 0, 0])
    assert found == [POLICY[i] for i in order[:5]]


@pytest.mark.parametrize(("sampling", "weight"), [("random", 0.25), ("random", 0.0), ("beams", 0.25)])
def test_the_loss_of_generated_captions_and_references_is_that_of_its_formula(
    make_objective, sampling: str, weight: float
):
    """With an image that could not be read, and with other counts than those of this micro-batch."""
    objective = make_objective(sampling=sampling, num_samples=3, cross_entropy_weight=weight)
    batch = make_batch(2)
    features, (samples, _) = batch["visual_features"], objective._sample(batch["visual_features"], [0, 0, 0])
    batch |= {"indices": [0, None]}
    inputs, metrics = objective.share(batch, [11, 8], [0, 0, 0])
    rewards = objective._rewards(0, samples)

    def log_p(ids: list[int]) -> torch.Tensor:
        return -objective.captioner(
            visual_features=features[:1],
            input_ids=torch.tensor([ids]),
            labels=torch.tensor([ids]),
            num_items_in_batch=1,
        ).loss

    expected = torch.zeros(())
    for i, ids in enumerate(samples):
        baseline = (sum(rewards) - rewards[i]) / 2
        expected = expected - (1 - weight) / 8 * (rewards[i] - baseline) * log_p(ids)
    for ids in batch["captions"][0]:
        expected = expected - weight / 11 * log_p(ids)
    loss = objective.captioner(**inputs).loss
    torch.testing.assert_close(loss, expected.to(loss), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        gradients(objective, loss), gradients(objective, expected), rtol=1e-5, atol=1e-7
    )
    assert metrics == pytest.approx([sum(rewards) / 8, sum(len(ids) - 1 for ids in samples) / 8])


def test_images_without_captions_are_not_counted(make_objective):
    objective = make_objective(num_samples=4)
    items = [
        CaptionItem(index=i, image=objective.collate.blank, captions=captions, unreadable=None)
        for i, captions in enumerate(([], [[END, 0, END]]))
    ]
    batch = objective.collate(items)
    assert batch["indices"] == [None, 1]
    assert objective.count([batch]) == [2, 4]


# --- Runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test puts its run, for the others."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def cider(settings: Settings, trained: Path):
    """Return a function that makes the settings of a run that continues from a captioner of this module."""
    if not trained.exists():
        train(replace(settings(max_train_steps=25), output_dir=str(trained)))
    unset = dict.fromkeys(("vision_model", "text_model", *ADAPTER))

    def make(name: str, /, **changes: Any) -> TrainArguments:
        common = {"objective": "cider", "init_from": str(trained), "num_samples": 3, "max_caption_tokens": 16}
        return replace(settings(name), **unset | common | changes)

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {
            "sampling": "random",
            "baseline": "greedy",
            "frozen_precision": "int8",
            "gradient_checkpointing": True,
        },
        {
            "features": "stored",
            "mixed_precision": "bf16",
            "frozen_precision": "bfloat16",
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 2,
            "cross_entropy_weight": 0.0,
        },
    ],
    ids=["random, greedy, int8", "beams, bf16, features"],
)
def test_a_resumed_run_writes_the_same_bytes(cider, settings: Settings, tmp_path: Path, changes: dict):
    if "features" in changes:
        args, changes = settings(), changes | {"features": str(tmp_path / "features")}
        data = load_data(args)
        store_features(
            Path(changes["features"]), [data.train, data.evaluation], vision_model=args.vision_model
        )
    changes = changes | {"max_train_steps": 4, "checkpointing_steps": "2"}
    whole, cut = cider("whole", **changes), cider("cut", **changes)
    train(whole)
    train_until(cut, 3)
    train(replace(cut, resume_from_checkpoint="latest"))
    assert differences(cut.output_dir, whole.output_dir) == []
    html = (Path(whole.output_dir) / "report.html").read_text()
    assert re.findall(r'aria-label="(.*)"', html) == [
        "CIDEr of the generated captions x 100",
        "Tokens of a generated caption",
        "Validation loss",
        "Learning rate",
    ]
    steps = [entry for entry in read_log(whole.output_dir) if "loss" in entry]
    names = ["learning_rate", "loss", "reward", "sample_length", "step"]
    assert [sorted(entry) for entry in steps] == [names] * 4
    assert all(1 <= entry["sample_length"] <= 15 for entry in steps)


def test_two_processes_take_the_steps_of_one(cider, tmp_path: Path):
    """One image cannot be read, and the last step of the epoch is padded."""
    common = {"sampling": "random", "max_train_steps": 3, "eval_split": "none", "max_unreadable_share": 0.4}
    one, two = cider("one", **common), cider("two", **common, per_device_train_batch_size=2)
    (Path(one.dataset) / "train" / "4.png").write_bytes(b"no picture")
    train(one)
    run_on_two(command(two), tmp_path)
    for ours, theirs in zip(read_log(one.output_dir), read_log(two.output_dir), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3)
    ours, theirs = (adapter(args.output_dir) for args in (one, two))
    for name, tensor in ours.items():
        if "k_proj.bias" not in name:  # whose exact gradient is zero
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def test_a_dry_run_reports_the_reward(cider, capsys: pytest.CaptureFixture):
    train(cider("dry", dry_run=True))
    printed = capsys.readouterr().out
    assert "Reward     " in printed
    assert " tokens" in printed


def test_a_single_training_image_is_refused(cider):
    args = cider("single")
    data = load_data(args)
    with pytest.raises(UserError, match="--objective cider needs at least 2 images to train on"):
        train(args, replace(data, train=data.train[:1]))
