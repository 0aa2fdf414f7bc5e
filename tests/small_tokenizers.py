"""Small tokenizers of the real classes, of 300 tokens each. The ids of their special tokens differ.

    style    class           begin            end              padding
    gpt2     GPT2Tokenizer   <|endoftext|>    <|endoftext|>    none
    opt      GPT2Tokenizer   </s>             </s>             <pad>
    llama    LlamaTokenizer  <s>              </s>             none
    qwen2    Qwen2Tokenizer  none             <|im_end|>       <|endoftext|>
    gemma    GemmaTokenizer  <bos>            <eos>            <pad>

"llama" and "gemma" write spaces as U+2581, and a character outside the vocabulary as a token for each of its
bytes; the others encode bytes. "opt", "llama" and "gemma" prepend the begin token when they are called.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import GemmaTokenizer, GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer

VOCABULARY = 300
SENTENCES = ["a dog runs on the grass", "two red birds sit in a tree", "a man rides a blue bike"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


def save_tokenizer_of(style: str, folder: Path) -> Any:
    """Build the tokenizer of a style, and save it into a folder."""
    tokenizer = STYLES[style]()
    tokenizer.save_pretrained(folder)
    return tokenizer


def _train(special_tokens: list[str], of_bytes: bool) -> dict[str, Any]:
    """Train the vocabulary and the merges of a BPE model, whose first tokens are the special tokens."""
    tokenizer, alphabet = Tokenizer(BPE()), pre_tokenizers.ByteLevel.alphabet()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    if of_bytes:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    else:
        special_tokens, alphabet = [*special_tokens, *(f"<0x{byte:02X}>" for byte in range(256))], []
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=special_tokens,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def _gpt2() -> GPT2Tokenizer:
    return GPT2Tokenizer(**_train(["<|endoftext|>"], True))


def _opt() -> GPT2Tokenizer:
    tokens = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    return GPT2Tokenizer(**_train(["<s>", "<pad>", "</s>"], True), **tokens, add_bos_token=True)


def _llama() -> LlamaTokenizer:
    return LlamaTokenizer(**_train(["<unk>", "<s>", "</s>"], False), add_bos_token=True)


def _qwen2() -> Qwen2Tokenizer:
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    trained = _train(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], True)
    return Qwen2Tokenizer(**trained, **tokens, chat_template=CHAT_TEMPLATE)


def _gemma() -> GemmaTokenizer:
    return GemmaTokenizer(**_train(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], False), add_bos_token=True)


STYLES: dict[str, Callable[[], Any]] = {
    "gpt2": _gpt2,
    "opt": _opt,
    "llama": _llama,
    "qwen2": _qwen2,
    "gemma": _gemma,
}
