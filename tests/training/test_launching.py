"""What launchers may ask for: refused where the loop does not do it, and shipped where it does."""

from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from ituning_hf.cli import main
from ituning_hf.training.arguments import TrainArguments
from ituning_hf.training.cli import train
from ituning_hf.utils.distributed import create_accelerator
from ituning_hf.utils.launching import refuse_unsupported_launch

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "examples" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP is not supported, and ACCELERATE_USE_FSDP asks for it"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed is not supported"),
        ("ACCELERATE_USE_MEGATRON_LM", "True", "Megatron-LM is not supported"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "a parallelism configuration is not supported"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "Give --gradient_accumulation_steps to the training"),
    ],
)
def test_what_is_not_supported_is_refused_before_anything_is_made(
    settings: Callable[..., TrainArguments], monkeypatch, variable: str, value: str, message: str
):
    monkeypatch.setenv(variable, value)
    args = settings(dataset="nowhere")  # is not even looked for
    with pytest.raises(ValueError, match=message):
        train(args)
    assert not Path(args.output_dir).exists()


def test_it_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["train"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ituning: error: FSDP is not supported")


def test_what_accelerate_says_of_a_plain_launch_is_fine(monkeypatch):
    environment = {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}
    refuse_unsupported_launch(environment)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert create_accelerator().num_processes == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_reads_every_shipped_configuration(path: Path):
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type.value == {"cpu": "NO", "multi_gpu": "MULTI_GPU"}[path.stem]
    assert config.mixed_precision in ("no", "bf16")
    assert config.num_processes == {"cpu": 1, "multi_gpu": 2}[path.stem]


def test_configurations_are_shipped():
    assert [path.name for path in CONFIGS] == ["cpu.yaml", "multi_gpu.yaml"]
