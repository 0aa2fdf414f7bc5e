"""Measure which layers' attention falls on the object that a word names.

    python examples/measure_attention.py outputs/captioner/best --num_scenes 300

The captioner must be trained on synthetic scenes (`ituning train` without --dataset), in which the place of
each object is known. The counted words name the shape or the colour of exactly one object. The columns, in
percent:

    hits            how often the patch with the highest value lies in the object's bounding box
    share           the part of the sum over the patches that lies in the box
    following word  the hits of the map of the following word, that of its own position if each
                    word is one token

each for the contrasts with the other words, which `ituning explain` shows, and for the attention weights.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ituning_hf import explain, load_captioner
from ituning_hf.data.scenes import RADII, Scene, SceneObject, make_scene


def named_objects(scene: Scene, word: str) -> list[SceneObject]:
    """Return the objects of a scene whose shape or colour a word names."""
    return [item for item in scene.objects if word in (item.shape, item.colour)]


def covered(item: SceneObject, rows: int, columns: int) -> np.ndarray:
    """Return which patches have their centre in an object's bounding box; shape (rows, columns)."""
    y, x = (np.mgrid[:rows, :columns] + 0.5) / np.array([rows, columns])[:, None, None]
    radius = RADII[item.size]
    return (abs(x - item.x) <= radius) & (abs(y - item.y) <= radius)


def groups_of(layers: list[int]) -> dict[str, list[int]]:
    """Return the layers and groups of layers to compare, by their titles: positions in `layers`."""
    positions, half = list(range(len(layers))), len(layers) // 2
    groups = {f"layer {layer}": [i] for i, layer in enumerate(layers)}
    return groups | {"lower half": positions[:half], "upper half": positions[half:], "all": positions}


def measure(folder: str, num_scenes: int, seed: int) -> Iterator[str]:
    """Yield the lines of the table."""
    model, processor = load_captioner(folder)
    layers = list(model.config.adapter_layers)
    found: dict[str, list[float]] = defaultdict(list)
    areas = []
    for index in range(num_scenes):
        scene = make_scene(seed, index)
        text = scene.captions(1)[0]
        each = [explain(model, scene.load(), processor, text=text, layers=[layer]) for layer in layers]
        maps = np.stack([explanation.maps for explanation in each])  # (layers, words, rows, columns)
        for position, word in enumerate(each[0].words[:-1]):
            objects = named_objects(scene, word)
            if len(objects) != 1:
                continue
            inside = covered(objects[0], *maps.shape[2:])
            areas.append(inside.mean())
            for title, chosen in groups_of(layers).items():
                group = replace(each[0], maps=maps[chosen].mean(axis=0))
                for values in (group.contrasts, group.maps):
                    own, following = values[position : position + 2]
                    hits = [inside.flat[weights.argmax()] for weights in (own, following)]
                    found[title] += [hits[0], own[inside].sum() / max(own.sum(), 1e-9), hits[1]]
    yield f"{len(areas):,} words; an object covers {np.mean(areas):.1%} of the patches on average"
    yield f"{'':<12}{'contrasts':^33}{'attention weights':^33}"
    yield f"{'':<12}" + 2 * f"{'hits':>8}{'share':>8}{'following word':>17}"
    for title, numbers in found.items():
        means = 100 * np.reshape(numbers, (-1, 6)).mean(axis=0)
        yield f"{title:<12}" + "".join(f"{x:>{8 if i % 3 < 2 else 17}.1f}" for i, x in enumerate(means))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("captioner", help="a captioner's folder")
    parser.add_argument("--num_scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="seed of the scenes; training uses 0 by default")
    args = parser.parse_args()
    for line in measure(args.captioner, args.num_scenes, args.seed):
        print(line)


if __name__ == "__main__":
    main()
