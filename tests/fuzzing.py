"""Mutations of a captioner's files, each with a word for it, and what must come of loading them."""

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from small_models import IMAGE_SIZE, SENTENCES

from ituning_hf import ITuningForCaptioning, ITuningProcessor

Mutation = tuple[str, bytes]  # what was done, in a reader's words, and the file's new bytes

PAYLOAD = "__import__('pathlib').Path('run-by-a-file').touch()"
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**300, 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), {"__float__": "NaN"}),
    *("", "x", "gelu", "relu", "../../x", "/etc/passwd", "C:\\x", "https://host.invalid/x", "org/repo", "\0"),
    *("org/repo--evil.Custom", PAYLOAD, "{{ " + PAYLOAD + " }}", "\ud800", "é" * 300),
    *([], [0], [0, 0], [[]], ["x"], {}, {"x": 1}, {"model_type": "bert"}, {"auto_map": {"AutoModel": "a.B"}}),
]
KEYS = [
    *("x", "", "auto_map", "configuration_files", "attn_implementation", "_attn_implementation_internal"),
    *(
        "quantization_config",
        "is_encoder_decoder",
        "tie_word_embeddings",
        "use_cache",
        "return_dict",
        "dtype",
    ),
    *("audio_tokenizer", "chat_template", "init_inputs", "added_tokens_decoder", "extra_special_tokens"),
    *("vocab_file", "tokenizer_file", "fast_tokenizer_files", "split_special_tokens", "padding_side"),
    *("name_or_path", "_name_or_path", "kwargs", "self", "cls", "torch_dtype", "num_labels", "id2label"),
]


def json_mutations(data: bytes, draw: random.Random) -> Iterator[Mutation]:
    """Change what a JSON file says; goes on for ever."""
    yield from _unreadable(data)
    while True:
        content = json.loads(data)
        holder, key = _draw_place(content, draw)
        match draw.randrange(6):
            case 0:
                what = "a key dropped"
                del holder[key]
            case 1:
                what = "a key added"
                content[draw.choice(KEYS)] = draw.choice(VALUES)
            case 2:
                what = "a value nudged"
                holder[key] = _nudged(holder[key], draw)
            case 3:
                what = "two values swapped"
                other, place = _draw_place(content, draw)
                holder[key], other[place] = other[place], holder[key]
            case _:
                what = "a value replaced"
                holder[key] = draw.choice(VALUES)
        try:
            yield what, json.dumps(content, indent=2).encode()
        except ValueError:  # two values swapped, one of them within the other
            continue


def _unreadable(data: bytes) -> Iterator[Mutation]:
    text = data.decode()
    for depth in (400, 10_000):
        yield "nested by the thousand", ('{"x": ' * depth + "1" + "}" * depth).encode()
        yield (
            "nested by the thousand",
            (text.rstrip()[:-1] + ', "x": ' + "[" * depth + "]" * depth + "}").encode(),
        )
    yield "a number of 5,000 digits", (text.rstrip()[:-1] + ', "x": ' + "9" * 5_000 + "}").encode()
    first = next(iter(json.loads(text)))
    yield "a key twice", (text.rstrip()[:-1] + f', {json.dumps(first)}: "x"' + "}").encode()
    yield "a key twice", ('{"model_type": "x", ' + text.lstrip()[1:]).encode()
    for whole in (b"", b"[]", b"null", b"1", b'"x"', b"{}", b"[{}]", b"{", b"\xff\xfe", b"\0" * 100, b"NaN"):
        yield "replaced as a whole", whole
    yield "in another encoding", text.encode("utf-16")
    yield "in another encoding", b"\xef\xbb\xbf" + data


def _draw_place(content: Any, draw: random.Random) -> tuple[Any, Any]:
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = (
            list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        )
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(content)
    return draw.choice(places)


def _nudged(value: Any, draw: random.Random) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return draw.choice([value + 1, value - 1, -value, value * 2, value / 2, float(value), str(value)])
        case str():
            return draw.choice([value[:-1], value + "x", value.upper(), [value], "../" + value])
        case list():
            return draw.choice([value[::-1], value[1:], value + value, dict(enumerate(value))])
        case dict():
            return draw.choice([{}, [value], list(value), {**value, "x": 1}])
    return draw.choice(VALUES)


def byte_mutations(data: bytes, draw: random.Random) -> Iterator[Mutation]:
    """Damage any file; goes on for ever."""
    while True:
        at, length = draw.randrange(len(data)), draw.choice([1, 1, 2, 8, 64])
        part = data[at : at + length]
        match draw.randrange(7):
            case 0:
                flipped = bytes([data[at] ^ (1 << draw.randrange(8))])
                yield "a bit flipped", data[:at] + flipped + data[at + 1 :]
            case 1:
                yield "cut short", data[:at]
            case 2:
                yield "bytes left out", data[:at] + data[at + length :]
            case 3:
                yield "bytes put in", data[:at] + draw.randbytes(length) + data[at:]
            case 4:
                yield "bytes set to zero", data[:at] + bytes(len(part)) + data[at + len(part) :]
            case 5:
                yield "bytes repeated", data[:at] + part + data[at:]
            case 6:
                other = draw.randrange(len(data))
                changed = bytearray(data)
                changed[at], changed[other] = changed[other], changed[at]
                yield "two bytes swapped", bytes(changed)


def header_mutations(data: bytes, draw: random.Random) -> Iterator[Mutation]:
    """Change the header of a safetensors file; goes on for ever."""
    (length,) = struct.unpack("<Q", data[:8])
    block = data[8 + length :]
    yield from _lying_lengths(data, length)
    yield "bytes after the tensors", data + b"\0" * 64
    yield "no tensors", _with_header({}, b"")
    yield "a tensor twice", _twice(data, length)
    while True:
        header = json.loads(data[8 : 8 + length])
        yield _change_header(header, draw), _with_header(header, block)


def _lying_lengths(data: bytes, length: int) -> Iterator[Mutation]:
    for lie in (0, 1, length - 1, length + 1, len(data), 10**8, 2**31, 2**40, 2**63, 2**64 - 1):
        yield "a header's length that lies", struct.pack("<Q", lie) + data[8:]


def _twice(data: bytes, length: int) -> bytes:
    text = data[8 : 8 + length].decode().rstrip()
    first, second = [key for key in json.loads(text) if key != "__metadata__"][:2]
    return _with_text(text.replace(json.dumps(second), json.dumps(first), 1), data[8 + length :])


def _with_header(header: Any, block: bytes) -> bytes:
    return _with_text(json.dumps(header), block)


def _with_text(text: str, block: bytes) -> bytes:
    encoded = text.encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + block


def _change_header(header: dict[str, Any], draw: random.Random) -> str:
    names = [name for name in header if name != "__metadata__"]
    one = draw.choice(names)
    entry = header[one]
    alike = [name for name in names if header[name]["shape"] == entry["shape"] and name != one]
    other = header[draw.choice(alike)]
    match draw.randrange(9):
        case 0:
            entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
            return "two tensors swapped"
        case 1:
            entry["data_offsets"] = list(other["data_offsets"])
            return "two tensors at one place"
        case 2:
            entry["dtype"] = draw.choice(["I32", "U32", "F16", "BF16", "F64", "BOOL", "F8_E4M3", "C64", "X"])
            return "a tensor's kind changed"
        case 3:
            entry["shape"] = draw.choice(
                [entry["shape"][::-1], [1, *entry["shape"]], [], [2**62, 4], [-1], "x"]
            )
            return "a tensor's shape changed"
        case 4:
            values = [[0, 0], [8, 4], [0, 2**63], [-4, 4], [0], "x", [0, 10**25], [1, 5]]
            entry["data_offsets"] = draw.choice(values)
            return "a tensor's place changed"
        case 5:
            header[draw.choice([one + "x", "x", "", "../x", "text_model.transformer.wte.weight"])] = (
                header.pop(one)
            )
            return "a tensor renamed"
        case 6:
            header["__metadata__"] = draw.choice([{}, {"x": "y"}, {"format": "np"}, {"x": 1}, [], "x", None])
            return "the metadata changed"
        case 7:
            del header[one]
            return "a tensor left out"
        case _:
            header[one] = draw.choice(VALUES[:-1])
            return "a tensor's entry replaced"


def outputs_of(model: ITuningForCaptioning) -> list[Any]:
    """What a captioner computes of two images: logits to the last bit, and captions."""
    return [logits_of(model), model.generate(pixel_values=_pixels(), max_new_tokens=4).tolist()]


def logits_of(model: ITuningForCaptioning) -> list[Any]:
    """What a captioner computes of two images, however it generates."""
    return model(_pixels(), torch.arange(1, 9).view(2, 4)).logits.tolist()


def _pixels() -> torch.Tensor:
    return torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(3))


def settings_of(processor: ITuningProcessor) -> list[Any]:
    """What a processor makes of two texts and an image."""
    image = Image.radial_gradient("L").resize((45, 40)).convert("RGB")
    batch = processor(images=[image], captions=[[*SENTENCES[:2], "Ärger \U0001f600<|endoftext|> 17"]])
    prompts = processor(text=["", "a dog"])
    text = processor.batch_decode([[0, 5, 40, 290]], skip_special_tokens=True)
    return [{key: value.tolist() for key, value in batch.items()}, prompts["input_ids"].tolist(), text]


def files_of(folder: Path) -> dict[str, bytes]:
    """What a folder holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def judge(
    load: Callable[[], Any], compute: Callable[[Any], Any], expected: Any, names: list[str] | None
) -> str:
    """Load what was mutated: an error that can be understood, or what it was before; nothing else.

    Args:
        load: Loads it.
        compute: What the loaded thing is compared by.
        expected: What that was before.
        names: One of these an error's message must hold. None: others' code may refuse it in its words.

    Returns:
        How it ended.
    """
    refusal = None
    try:
        loaded = load()
    except Exception as error:
        refusal = error
    if refusal is None:
        assert compute(loaded) == expected, "another one was loaded, and nothing said"
        return "loaded, and the same to the last bit"
    if names is None:
        return "refused by a class of Transformers, in its words"
    assert isinstance(refusal, (OSError, ValueError, TypeError)), repr(refusal)
    assert not isinstance(refusal, (UnicodeError, json.JSONDecodeError)), repr(refusal)
    assert any(name in str(refusal) for name in names), str(refusal)
    return "refused, with what is wrong and what to do"
