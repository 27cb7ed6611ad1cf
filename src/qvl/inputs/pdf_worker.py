"""A PDF opened in a process of its own: `python -P pdf_worker.py count FILE` or `… page FILE INDEX SCALE MOST_PIXELS`.

pdfium is C++ that reads a stranger's file and can't be interrupted; here it has limits of processor time and memory,
and what ends it ends one page. Writes a line of JSON, and the page's RGB rows behind it. Imports nothing of qvl, so
that it starts fast.
"""

import json
import resource
import sys

CPU_SECONDS = 20
MEMORY_BYTES = 4 << 30


def main(kind: str, path: str, *more: str) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
        if kind == "count":
            answer(num_pages=len(document))
            return
        index, scale, most_pixels = int(more[0]), float(more[1]), int(more[2])
        document.init_forms()  # what is filled in is drawn too; before a page is opened
        page = document[index]
        width, height = page.get_size()
        if not 0 <= width * scale * height * scale <= most_pixels:
            answer(width=round(width * scale), height=round(height * scale))
            return
        image = page.render(scale=scale).to_pil().convert("RGB")
        answer(width=image.width, height=image.height)
        sys.stdout.buffer.write(image.tobytes())
    except pypdfium2.PdfiumError as e:
        answer(error=str(e))


def answer(**found: object) -> None:
    sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
