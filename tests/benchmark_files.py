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


def put_video(path: Path) -> Path:
    """Only its name counts to a reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")
    return path


def videomme(folder: Path) -> Path:
    videos, number = [], 0
    for video, duration, questions in (("001", "short", 3), ("301", "medium", 1), ("601", "long", 1)):
        put_video(folder / "data" / f"{video}.mp4")
        videos.append(
            {
                "video_id": video,
                "duration": duration,
                "domain": "Knowledge",
                "sub_category": "Law",
                "questions": [],
            }
        )
        for i in range(questions):
            number += 1
            videos[-1]["questions"].append(
                {
                    "question_id": f"{video}-{i + 1}", "task_type": "Counting Problem", "question": f"Which {number}?",
                    "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. None of them."], "answer": "C",
                    "response": "",
                }
            )  # fmt: skip
    (folder / "subtitle").mkdir()
    (folder / "subtitle" / "001.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\n<i>Hello</i> there\n\n")
    put_json(folder / "test.json", videos)
    return folder


def lvbench(folder: Path) -> Path:
    rows = []
    for key, numbers in (("Cm73ma6Ibcs", range(3)), ("TiQBTesZUJQ", range(3, 5))):
        put_video(folder / "videos" / f"{key}.mp4")
        qa = [
            {"uid": str(i), "question": f"What {i}?\n(A) one\n(B) two\n(C) three\n(D) four", "answer": "B",
             "question_type": ["entity recognition", "reasoning"][: 1 + i % 2], "time_reference": "00:15-00:19"}
            for i in numbers
        ]  # fmt: skip
        rows.append({"key": key, "type": "cartoon", "qa": qa})
    put_jsonl(folder / "video_info.meta.jsonl", rows)
    return folder


def charades_sta(folder: Path) -> Path:
    lines = []
    for i in range(5):
        put_video(folder / "Charades_v1_480" / f"V{i % 2}.mp4")
        lines.append(f"V{i % 2} {i}.0 {i + 10}.0##a person opens door {i}.")
    (folder / "charades_sta_test.txt").write_text("\n".join(lines) + "\n")
    return folder


def _steps(folder: Path, pixels: bool) -> list[dict]:
    element = [40, 80, 20, 40] if pixels else [0.4, 0.4, 0.2, 0.2]  # y, x, height, width
    actions = [
        (4, "[0.5, 0.5]", "[0.5, 0.5]", "", "click on the button"),
        (4, "[0.8, 0.5]", "[0.2, 0.5]", "", "scroll up"),
        (3, "[-1.0, -1.0]", "[-1.0, -1.0]", "Hello", "type Hello"),
        (6, "[-1.0, -1.0]", "[-1.0, -1.0]", "", "press the home button"),
        (10, "[-1.0, -1.0]", "[-1.0, -1.0]", "", "stop and set the query as completed"),
    ]
    rows = []
    for i, (kind, touch, lift, text, desc) in enumerate(actions):
        put_image(folder / "general" / "GENERAL-1" / f"GENERAL-1_{i}.png")
        rows.append(
            {
                "episode_id": "1", "episode_length": 5, "step_id": i, "instruction": "say hello",
                "ui_positions": json.dumps([element, [0, 0, 10, 10] if pixels else [0.0, 0.0, 0.1, 0.05]]),
                "ui_text": '["OK", ""]', "ui_types": '["TEXT", "ICON_HOME"]', "result_action_type": kind,
                "result_action_text": text, "result_touch_yx": touch, "result_lift_yx": lift,
                "image_path": f"general/GENERAL-1/GENERAL-1_{i}.png",
            }
        )  # fmt: skip
        rows[-1] |= (
            {"coat_action_desc": desc}
            if pixels
            else {"low_instruction": f"do {desc}", "subset": "android_control"}
        )
    return rows


def aitz(folder: Path) -> Path:
    put_json(folder / "general" / "GENERAL-1" / "GENERAL-1.json", _steps(folder, pixels=True))
    return folder


def android_control(folder: Path) -> Path:
    put_json(folder / "1.json", _steps(folder, pixels=False))
    return folder


def tool_call(**arguments) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'mobile_use', 'arguments': arguments})}\n</tool_call>"


# The tests' screens are 200 by 100 and seen at 196 by 112 (test_evaluate_benchmarks.reply).
ACTIONS = {
    "1-0": tool_call(action="click", coordinate=[98, 56]),
    "1-1": tool_call(action="swipe", coordinate=[98, 90], coordinate2=[98, 20]),
    "1-2": tool_call(action="type", text="hello"),
    "1-3": tool_call(action="system_button", button="Home"),
    "1-4": tool_call(action="terminate", status="success"),
}


def screenspot(folder: Path, suffix: str = "", images: str = "screenspot_imgs") -> Path:
    for platform, number in (("mobile", 2), ("desktop", 2), ("web", 1)):
        rows = [
            {"img_filename": f"{platform}{i}.png", "bbox": [80, 40, 40, 20], "instruction": f"open {i}",
             "data_type": ("text", "icon")[i % 2], "data_source": "ios"}
            for i in range(number)
        ]  # fmt: skip
        for row in rows:
            put_image(folder / images / row["img_filename"])
        put_json(folder / f"screenspot_{platform}{suffix}.json", rows)
    return folder


def screenspot_v2(folder: Path) -> Path:
    return screenspot(folder, "_v2", "screenspotv2_image")


def screenspot_pro(folder: Path) -> Path:
    rows = [
        {"img_filename": f"cad/{i}.png", "bbox": [80, 40, 120, 60], "instruction": "draw", "instruction_cn": "画",
         "id": f"cad_{i}", "application": "cad", "platform": "windows", "img_size": [200, 100],
         "ui_type": ("text", "icon")[i % 2], "group": "CAD"}
        for i in range(5)
    ]  # fmt: skip
    for row in rows:
        put_image(folder / "images" / row["img_filename"])
    put_json(folder / "annotations" / "cad_windows.json", rows)
    return folder


def refcoco(folder: Path) -> Path:
    for name, number in (("refcoco_val", 3), ("refcocog_test", 2)):
        rows = [
            {"image": f"train2014/{i}.jpg", "sent": "the left one", "bbox": [20.0, 10.0, 100.0, 50.0], "width": 200,
             "height": 100}
            for i in range(number)
        ]  # fmt: skip
        for row in rows:
            put_image(folder / row["image"])
        put_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def kreta(folder: Path) -> Path:
    rows = [
        {"id": f"t{i}", "question": "역의 이름은?", "A": "서울", "B": "부산", "C": "대구", "D": "광주", "answer": "B",
         "category": "Transportation and Logistics", "image": base64_image()}
        for i in range(5)
    ]  # fmt: skip
    put_jsonl(folder / "test.jsonl", rows)
    return folder


def ocrbench_v2(folder: Path) -> Path:
    rows = [
        {"type": "text recognition en", "question": "What is written?", "answers": ["OPEN"]},
        {"type": "table parsing en", "question": "Write it as HTML.",
         "answers": ["<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>"]},
        {"type": "key information extraction en", "question": "Give the fields.",
         "answers": [{"total": ["12.50", "$12.50"], "date": ["2024-01-02"]}]},
        {"type": "text spotting en", "question": "Find all words.", "answers": [],
         "bbox": [[10, 10, 60, 10, 60, 30, 10, 30], [10, 50, 90, 50, 90, 70, 10, 70]], "content": ["EXIT", "Hello!"]},
        {"type": "cognition VQA cn", "question": "哪一个? A. 一 B. 二", "answers": ["B"], "eval": "multiple choice"},
    ]  # fmt: skip
    for i, row in enumerate(rows):
        row |= {"dataset_name": "made", "id": i, "image_path": f"EN_part/{i}.jpg"}
        put_image(folder / row["image_path"])
    put_json(folder / "OCRBench_v2.json", rows)
    return folder


def cc_ocr(folder: Path) -> Path:
    rows = [
        ("scene_en", "document_text", "Read it.", "Open 9 to 5"),
        ("Korean", "Korean", "Read it.", "가나 다라"),
        ("doc_photo_eng", "doc", "Write it as LaTeX.", "\\section{One} word"),
        ("table_scan", "table", "Write it as HTML.", "<table><tr><td>a b</td></tr></table>"),
        (
            "SROIE",
            "constrained_category",
            "Give the fields.",
            '{"total": "12.50", "items": [{"name": "tea"}]}',
        ),
    ]
    header = ["index", "image", "question", "answer", "split", "l2-category"]
    cells = [[str(i), base64_image(), q, a, s, c] for i, (s, c, q, a) in enumerate(rows)]
    put_tsv(folder / "CCOCR.tsv", header, cells)
    return folder


def omnidocbench(folder: Path) -> Path:
    pages = []
    for i in range(5):
        put_image(folder / "images" / f"page_{i}.png")
        blocks = [
            {"category_type": "title", "text": f"Heading {i}", "order": 1, "anno_id": 1},
            {"category_type": "text_block", "text": "the first half of a sentence", "order": 2, "anno_id": 2},
            {"category_type": "text_block", "text": "and the other half.", "order": 5, "anno_id": 5},
            {"category_type": "equation_isolated", "latex": "\\mathrm{x}^2 = 4", "order": 3, "anno_id": 3},
            {
                "category_type": "table",
                "html": "<table><tr><td>1</td><td>2</td></tr></table>",
                "order": 4,
                "anno_id": 4,
            },
            {"category_type": "figure", "order": 6, "anno_id": 6},
        ]
        relation = [{"source_anno_id": 2, "target_anno_id": 5, "relation_type": "truncated"}]
        info = {"image_path": f"page_{i}.png", "page_attribute": {"language": "english"}}
        pages.append({"layout_dets": blocks, "page_info": info, "extra": {"relation": relation}})
    put_json(folder / "OmniDocBench.json", pages)
    return folder


PAGE = """# Heading 0

the first half of a sentence and the other half.

$$x^2 = 4$$

| 1 | 2 |
|---|---|
"""


# name: (what writes it, right answers by id of the first items)
MAKERS = {
    "docvqa": (docvqa, {"100": "line 0"}),
    "infovqa": (infovqa, {"3": "3"}),
    "textvqa": (textvqa, {"0": "Stop."}),
    "chartqa": (chartqa, {"human-0": "104", "augmented-0": "95.5"}),
    "ocrbench": (ocrbench, {"0": "It says centre here", "4": "a=b^{2}"}),
    "ocrbench_v2": (
        ocrbench_v2,
        {
            "0": "It says open",
            "2": '{"date": "2024-01-02", "total": "$ 12.50"}',
            "4": "答案是B",
            "1": "```html\n<table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>\n```",
            "3": "[[10, 10, 60, 30, 'exit'], [12, 50, 90, 70, 'Hello']]",
        },
    ),
    "cc_ocr": (
        cc_ocr,
        {
            "scene_en-0": "to open: 5 9",
            "Korean-1": "가나다라",
            "doc_photo_eng-2": "```latex\n\\section{One}word```",
            "table_scan-3": "<table border=1><tr>\n<td>ab</td></tr></table>",
            "SROIE-4": '```json\n{"items": [{"name": "tea"}], "total": "12.50"}\n```',
        },
    ),
    "omnidocbench": (
        omnidocbench,
        {"page_0.png": PAGE.replace("| 1 | 2 |\n|---|---|", "<table><tr><td>1</td><td>2</td></tr></table>")},
    ),
    "mathvista": (
        mathvista,
        {"1": "(B) green", "3": "so the answer is 5 apples", "4": "about 1.23", "5": "[1,2]"},
    ),
    "mmmu": (mmmu, {"validation_Art_1": "**B**", "validation_Math_1": "so it is 12."}),
    "mmmu_pro": (mmmu_pro, {"test_History_0": "Answer: J"}),
    "videomme": (videomme, {"001-1": "The answer is C. Berries.", "601-1": "**C**"}),
    "lvbench": (lvbench, {"0": "The answer is B", "1": "**B**", "2": "(B) two"}),
    "charades_sta": (charades_sta, {"1": "0.0 - 10.0 seconds", "2": "From 00:01 to 00:11."}),
    "aitz": (aitz, ACTIONS),
    "android_control": (android_control, ACTIONS),
    "screenspot": (screenspot, {"screenspot_mobile-0": '{"point_2d": [98, 56]}'}),
    "screenspot_v2": (screenspot_v2, {"screenspot_web_v2-0": '{"bbox_2d": [90, 50, 110, 60]}'}),
    "screenspot_pro": (
        screenspot_pro,
        {"cad_0": tool_call(action="left_click", coordinate=[98, 56]).replace("mobile", "computer")},
    ),
    "refcoco": (refcoco, {"refcoco_val-0": '```json\n[{"bbox_2d": [20, 11, 98, 56], "label": "one"}]\n```'}),
    "kreta": (kreta, {"t0": "역 이름이 보입니다.\nAnswer: B", "t1": "정답은 B"}),
}
