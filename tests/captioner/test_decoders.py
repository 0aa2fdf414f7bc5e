"""What only GPT-2's family does; see `test_families.py` for what all families do."""

import torch
from torch.nn import functional as F

from ituning_hf import ITuningForCaptioning
from ituning_hf.captioner.decoders_ituning import GPT2Family

FAMILY = GPT2Family()
ROWS, LENGTH, WIDTH = 3, 7, 22


def run(captioner: ITuningForCaptioning) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return a block's output, the gradient of its input, and how many tensors of width 4 d it keeps."""
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        _, output = FAMILY.run_layer(captioner.text_model.transformer.h[1], hidden)
    (gradient,) = torch.autograd.grad(output.square().sum(), hidden)
    return output, gradient, sum(shape[-1:] == (4 * WIDTH,) and len(shape) == 3 for shape in kept)


def test_training_uses_a_fused_gelu_that_saves_one_tensor(captioner):
    output, gradient, kept = run(captioner)
    trained_output, trained_gradient, kept_in_training = run(captioner.train())
    assert (kept, kept_in_training) == (4, 1)
    torch.testing.assert_close(trained_output, output)
    torch.testing.assert_close(trained_gradient, gradient)


def test_other_activations_are_not_replaced(captioner):
    captioner.train()
    block = captioner.text_model.transformer.h[1]
    block.mlp.act = torch.nn.ReLU()
    x = torch.randn(ROWS, LENGTH, WIDTH)
    normed, output = FAMILY.run_layer(block, x)
    residual = block.attn(block.ln_1(x))[0] + x
    expected = residual + block.mlp.c_proj(F.relu(block.mlp.c_fc(normed)))
    torch.testing.assert_close(output, expected)


def test_a_hook_on_the_feed_forward_network_is_called_in_training(captioner):
    captioner.train()
    mlp = captioner.text_model.transformer.h[1].mlp
    seen = []
    handle = mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    run(captioner)
    assert seen == [(ROWS, LENGTH, WIDTH)]
    handle.remove()
    mlp.forward = lambda x: seen.append("replaced") or torch.zeros_like(x)
    run(captioner)
    assert seen[1:] == ["replaced"]
