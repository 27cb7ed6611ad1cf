"""What qvl_receipts.yaml calls: the image and the question of a line, and whether the whole answer is the truth."""

from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent.parent


def images(doc):
    return [Image.open(FOLDER / doc["image"]).convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def scores(doc, results):
    return {"exact": float(results[0].strip().casefold() == doc["answer"].casefold())}
