"""Markdown tables."""

from ituning_hf.hub.tables import table


def test_columns_are_aligned():
    assert table(("split", "images"), [("train", "29,000"), ("a long one", "7")], numbers_from=1) == (
        "| split      | images |\n| ---------- | -----: |\n| train      | 29,000 |\n| a long one |      7 |"
    )


def test_what_would_end_a_cell_does_not():
    assert table(("a|b", ""), [("x\ny", "")]).splitlines() == [
        "| a\\|b |     |",
        "| ---- | --- |",
        "| x y  |     |",
    ]
