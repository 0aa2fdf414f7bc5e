"""Measure which layers' attention falls on the object that a word names.

    python examples/measure_attention.py outputs/captioner/best --num_scenes 300

The captioner must be trained on synthetic scenes (`ituning train` without --dataset), in which the place of
each object is known. The counted words name the shape or the colour of exactly one object. The columns, in
percent:

    hits            how often the patch with the most attention lies in the object's bounding box
    attention       the part of the attention to patches that lies in the box
    following word  the hits of the map of the following word, that of its own position if each
                    word is one token
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator

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
    found = defaultdict(list)
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
                own, following = maps[chosen, position : position + 2].mean(axis=0)
                hits = [inside.flat[weights.argmax()] for weights in (own, following)]
                found[title].append([hits[0], own[inside].sum() / own.sum(), hits[1]])
    yield f"{len(areas):,} words; an object covers {np.mean(areas):.1%} of the patches on average"
    yield f"{'':<12}{'hits':>8}{'attention':>12}{'following word':>17}"
    for title, numbers in found.items():
        hits, share, following = 100 * np.mean(numbers, axis=0)
        yield f"{title:<12}{hits:>8.1f}{share:>12.1f}{following:>17.1f}"


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
