"""What a launcher may ask for and the training loop does not do, refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping

# What `accelerate launch` sets for them.
_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def refuse_unsupported_launch(environment: Mapping[str, str]) -> None:
    """Refuse what would shard the model, or accumulate gradients a second time.

    Sharding would have to go through every place that reads an adapter's weights, for nothing: the
    backbones are frozen and have neither gradients nor optimizer states to share out.

    Args:
        environment: The environment variables.

    Raises:
        ValueError: with what to do instead.
    """
    for variable, name in _UNSUPPORTED.items():
        if environment.get(variable, "false").lower() in ("true", "1", "yes", "on"):
            raise ValueError(
                f"{name} is not supported, and {variable} asks for it (`accelerate config` and `accelerate "
                "launch` set it): only the small adapters have gradients and optimizer states, so plain data "
                "parallelism is enough: `accelerate launch --multi_gpu` or `torchrun`."
            )
    variable = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    if environment.get(variable, "1") != "1":
        raise ValueError(
            f"{variable} is {environment[variable]}: the loss would be divided by it, though nothing is "
            "accumulated. Give --gradient_accumulation_steps to the training and not to `accelerate launch`."
        )
