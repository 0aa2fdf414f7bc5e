"""Render the model cards of the paper's benchmarks.

python examples/render_model_cards.py                    # into model_cards/
python examples/render_model_cards.py --folder cards/
"""

import argparse
from pathlib import Path

from ituning_hf.hub.benchmarks import benchmark_cards

FOLDER = Path(__file__).resolve().parents[1] / "model_cards"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="output folder (default: model_cards/)")
    folder = parser.parse_args().folder
    for name, card in benchmark_cards().items():
        (folder / name).write_text(str(card), encoding="utf-8")
        print(folder / name)
