"""Draws the pictures beside this file. Run it again after a change of `qvl.synth`: python examples/make_examples.py

Each is a sample of the test seeds, so no model of this project was trained on it.
"""

from pathlib import Path

from qvl.cli.synth import write_clip
from qvl.synth import TEST_SEEDS, Clip, make

HERE = Path(__file__).parent
# file → kind, offset into the test seeds, difficulty
EXAMPLES = {
    "receipt.png": ("receipt", 40, 1),
    "shapes.png": ("count", 0, 1),
    "chart.png": ("chart", 1, 1),
    "page.png": ("page", 12, 1),
    "screen.png": ("screen", 10, 1),
    "clip.mp4": ("clip", 4, 1),
}


def main() -> None:
    for name, (kind, offset, difficulty) in EXAMPLES.items():
        sample = make(kind, TEST_SEEDS[offset], difficulty)
        medium = sample.media[0]
        if isinstance(medium, Clip):
            write_clip(medium, HERE / name)
        else:
            medium.save(HERE / name)
        print(f"{name}: {sample.question} {sample.answer}")


if __name__ == "__main__":
    main()
