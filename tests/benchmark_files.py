"""Five items of each benchmark in its official layout, invented here; the records say where each layout was seen."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

SIZE = (200, 100)


def image_bytes(colour: str = "white") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", SIZE, colour).save(out, "PNG")
    return out.getvalue()


def put_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes())
    return path


def put_json(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def put_jsonl(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def put_tsv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    """As pandas writes it: tabs, cells with tabs, quotes or line breaks in quotes."""

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in '\t\n"') else text

    lines = ["\t".join(map(cell, row)) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def base64_image() -> str:
    return base64.b64encode(image_bytes()).decode()


def docvqa(folder: Path) -> Path:
    data = []
    for i in range(5):
        put_image(folder / "documents" / f"page_{i}.png")
        data.append(
            {
                "questionId": 100 + i, "question": f"What is line {i}?", "question_types": ["form"],
                "image": f"documents/page_{i}.png", "docId": i, "data_split": "val", "answers": ["Line", f"line {i}"],
            }
        )  # fmt: skip
    put_json(
        folder / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "data": data}
    )
    return folder


def infovqa(folder: Path) -> Path:
    data = []
    for i in range(5):
        put_image(folder / "images" / f"{i}.png")
        data.append(
            {
                "questionId": i, "question": f"How many {i}?", "image_local_name": f"{i}.png", "answers": [str(i)],
                "answer_type": ["single span"], "evidence": ["Text"], "operation/reasoning": [],
            }
        )  # fmt: skip
    put_json(
        folder / "infographicsVQA_val_v1.0_withQT.json", {"dataset_name": "InfographicVQA", "data": data}
    )
    return folder


def textvqa(folder: Path) -> Path:
    data = []
    for i in range(5):
        put_image(folder / "train_images" / f"img{i}.jpg")
        answers = ["stop"] * 4 + ["the stop sign"] * 3 + ["three"] * 3
        data.append(
            {"question_id": i, "question": "what does it say?", "image_id": f"img{i}", "answers": answers}
        )
    put_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": data})
    return folder


def chartqa(folder: Path) -> Path:
    for half, number in (("human", 3), ("augmented", 2)):
        rows = [
            {"imgname": f"{half}{i}.png", "query": "How much?", "label": str(100 + i)} for i in range(number)
        ]
        for row in rows:
            put_image(folder / "png" / row["imgname"])
        put_json(folder / f"test_{half}.json", rows)
    return folder


OCRBENCH_TYPES = (
    "Regular Text Recognition",
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
)


def ocrbench(folder: Path) -> Path:
    rows = [
        {"dataset_name": "IIIT5K", "id": 7, "image_path": f"IIIT5K/{i}.png", "question": "what is written here?",
         "answers": ["CENTRE"] if i % 2 else "CENTRE", "type": kind}
        for i, kind in enumerate(OCRBENCH_TYPES)
    ]  # fmt: skip
    rows.append(
        {"dataset_name": "HME100k", "id": 7, "image_path": "HME100K/4.png", "question": "Please write out the formula.",
         "answers": "a = b ^ { 2 }\n", "type": "Handwritten Mathematical Expression Recognition"}
    )  # fmt: skip
    for row in rows:
        put_image(folder / "OCRBench_Images" / row["image_path"])
    put_json(folder / "OCRBench.json", rows)
    return folder


def mathvista(folder: Path) -> Path:
    kinds = [
        ("multi_choice", "text", None, ["red", "green", "blue"], "green"),
        ("multi_choice", "text", None, ["12", "14"], "12"),
        ("free_form", "integer", None, None, "5"),
        ("free_form", "float", 1.0, None, "1.2"),
        ("free_form", "list", None, None, "[1, 2]"),
    ]
    rows = {}
    for i, (question_type, answer_type, precision, choices, answer) in enumerate(kinds, 1):
        put_image(folder / "images" / f"{i}.jpg")
        rows[str(i)] = {
            "question": f"Which {i}?", "image": f"images/{i}.jpg", "choices": choices, "unit": None, "pid": str(i),
            "precision": precision, "answer": answer, "question_type": question_type, "answer_type": answer_type,
            "metadata": {"split": "testmini", "task": "figure question answering", "skills": ["arithmetic reasoning"]},
        }  # fmt: skip
    put_json(folder / "testmini.json", rows)
    return folder


def mmmu(folder: Path) -> Path:
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "split", "id"]
    rows = [
        [str(i), f"<image 1> Which\nof {i}?", "", "one", "two", "three", "four", "B", "Art",
         base64_image() if i != 3 else "1", "validation", f"validation_Art_{i}"]
        for i in range(1, 5)
    ]  # fmt: skip
    rows.append(
        [
            "5",
            "How many?",
            "",
            "",
            "",
            "",
            "",
            "12",
            "Math",
            base64_image(),
            "validation",
            "validation_Math_1",
        ]
    )
    rows.append(["6", "Of dev?", "", "a", "b", "c", "d", "A", "Art", base64_image(), "dev", "dev_Art_1"])
    put_tsv(folder / "MMMU_DEV_VAL.tsv", header, rows)
    return folder


def mmmu_pro(folder: Path) -> Path:
    options = str([f"option {i}" for i in range(10)])
    rows = []
    for i in range(5):
        put_image(folder / "images" / f"{i}.png")
        rows.append(
            {"id": f"test_History_{i}", "question": "Which?", "options": options, "answer": "J", "subject": "History",
             "image": f"images/{i}.png"}
        )  # fmt: skip
    put_jsonl(folder / "standard.jsonl", rows)
    return folder


# name: (what writes it, right answers by id of the first items)
MAKERS = {
    "docvqa": (docvqa, {"100": "line 0"}),
    "infovqa": (infovqa, {"3": "3"}),
    "textvqa": (textvqa, {"0": "Stop."}),
    "chartqa": (chartqa, {"human-0": "104", "augmented-0": "95.5"}),
    "ocrbench": (ocrbench, {"0": "It says centre here", "4": "a=b^{2}"}),
    "mathvista": (
        mathvista,
        {"1": "(B) green", "3": "so the answer is 5 apples", "4": "about 1.23", "5": "[1,2]"},
    ),
    "mmmu": (mmmu, {"validation_Art_1": "**B**", "validation_Math_1": "so it is 12."}),
    "mmmu_pro": (mmmu_pro, {"test_History_0": "Answer: J"}),
}
