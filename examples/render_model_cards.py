"""Render model_cards/: what is known of captioners on the paper's benchmarks.

python examples/render_model_cards.py
"""

from pathlib import Path

from ituning_hf.model_card.benchmarks import benchmark_cards

FOLDER = Path(__file__).resolve().parents[1] / "model_cards"

if __name__ == "__main__":
    for name, card in benchmark_cards().items():
        (FOLDER / name).write_text(str(card), encoding="utf-8")
        print(FOLDER / name)
