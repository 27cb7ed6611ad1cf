"""Pages of PDFs and TIFFs: every page, and everything on it that a viewer shows."""

import io

import numpy as np
import pytest
from PIL import Image

from qvl.errors import MediaError, PromptError
from qvl.inputs.image import load_image
from qvl.inputs.pages import list_pages, page_image

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


@pytest.fixture
def scan(tmp_path):
    pages = [Image.new("RGB", (60, 40 + 10 * i), colour) for i, colour in enumerate(COLOURS)]
    pages[0].save(tmp_path / "scan.tiff", save_all=True, append_images=pages[1:])
    return str(tmp_path / "scan.tiff")


def test_all_pages_of_a_tiff_are_read(scan, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "one.tif")
    refs = list_pages([scan, str(tmp_path / "one.tif")])
    assert [str(ref) for ref in refs] == [f"{scan} page {i}" for i in (1, 2, 3)] + [str(tmp_path / "one.tif")]
    assert [ref.number for ref in refs] == [1, 2, 3, 4]
    images = [page_image(ref) for ref in refs[:3]]
    assert [image.getpixel((5, 5)) for image in images] == COLOURS
    assert [image.height for image in images] == [40, 50, 60]
    (second,) = list_pages([scan], wanted="2")
    assert page_image(second).getpixel((5, 5)) == COLOURS[1]
    with pytest.raises(PromptError, match="has pages 1 to 3"):
        list_pages([scan], wanted="4")


def test_what_is_left_out_of_a_tiff_or_an_animation_is_said(scan, tmp_path, caplog):
    assert load_image(scan).getpixel((5, 5)) == COLOURS[0]
    assert "the first of its 3 pages is shown" in caplog.text
    frames = [Image.new("RGB", (8, 8), colour) for colour in COLOURS]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    load_image(str(tmp_path / "a.gif"))
    assert "the first of its 3 frames is shown; give it as a video" in caplog.text


def test_a_page_that_is_not_there_is_refused(scan):
    with pytest.raises(MediaError, match="has no page 9"):
        load_image(scan, page=8)


# --- a PDF with a form and notes, by hand: one black square for each thing that has to be drawn

BLACK = b"0 g 0 0 20 20 re f"


def pdf(annotations, extra=()):
    """One page of 200 x 200 points; each annotation is (dictionary, its appearance or None)."""
    objects = {1: b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [%s] /DA (/Helv 0 Tf 0 g) "
                  b"/DR << /Font << /Helv 4 0 R >> >> /NeedAppearances false >> >>",
               2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
               4: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"}  # fmt: skip
    number, names, fields = 5, [], []
    for dictionary, appearance in annotations:
        shown = b""
        if appearance is not None:
            stream = (
                b"<< /Type /XObject /Subtype /Form /BBox [0 0 20 20] /Length %d >>\nstream\n%s\nendstream"
            )
            objects[number + 1] = stream % (len(appearance), appearance)
            state = b"/N << /Yes %d 0 R >>" if b"/Btn" in dictionary else b"/N %d 0 R"
            shown = b"/AP << " + state % (number + 1) + b" >>"
        objects[number] = b"<< /Type /Annot /F 4 /P 3 0 R %s %s >>" % (dictionary, shown)
        names.append(b"%d 0 R" % number)
        if b"/Widget" in dictionary:
            fields.append(names[-1])
        number += 2
    objects[1] %= b" ".join(fields)
    objects[3] = (
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Resources << >> /Annots ["
        + b" ".join(names)
        + b"] >>"
    )
    out, offsets = io.BytesIO(b"%PDF-1.7\n"), {}
    out.seek(0, 2)
    for key, body in sorted(objects.items()):
        offsets[key] = out.tell()
        out.write(b"%d 0 obj\n%s\nendobj\n" % (key, body))
    start = out.tell()
    out.write(b"xref\n0 1\n0000000000 65535 f \n")
    for key, at in sorted(offsets.items()):
        out.write(b"%d 1\n%010d 00000 n \n" % (key, at))
    out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (number, start))
    return out.getvalue()


def rect(i):
    return b"/Rect [%d 100 %d 120]" % (10 + 30 * i, 30 + 30 * i)


DRAWN = {
    "a text field": b"/Subtype /Widget /FT /Tx /T (a) /V (filled)",
    "a checked box": b"/Subtype /Widget /FT /Btn /T (b) /V /Yes /AS /Yes",
    "a choice": b"/Subtype /Widget /FT /Ch /T (c) /V (two) /Opt [(one) (two)]",
    "a signature": b"/Subtype /Widget /FT /Sig /T (d)",
    "a stamp": b"/Subtype /Stamp",
    "free text": b"/Subtype /FreeText /Contents (note) /DA (/Helv 9 Tf)",
    "ink": b"/Subtype /Ink /InkList [[0 0 1 1]]",
    "a square": b"/Subtype /Square",
    "a line": b"/Subtype /Line /L [0 0 1 1]",
}


@pytest.mark.parametrize("name", DRAWN)
def test_fields_and_notes_with_an_appearance_are_drawn(name, tmp_path):
    path = tmp_path / "form.pdf"
    path.write_bytes(pdf([(DRAWN[name] + rect(0), BLACK)]))
    (ref,) = list_pages([str(path)], dpi=72)
    image = np.asarray(page_image(ref).convert("L"))
    assert image.shape == (200, 200)
    inside = image[82:98, 12:28]  # from the top
    assert inside.mean() < 40, "the black square isn't there"
    assert image[150:, :].min() == 255


def test_a_filled_field_without_an_appearance_is_drawn(tmp_path):
    path = tmp_path / "form.pdf"
    field = b"/Subtype /Widget /FT /Tx /T (a) /V (HHHHHHHHHH) /DA (/Helv 12 Tf 0 g) /Rect [10 100 150 120]"
    path.write_bytes(pdf([(field, None)]))
    image = np.asarray(page_image(list_pages([str(path)], dpi=72)[0]).convert("L"))
    assert (image[80:100, 10:150] < 128).sum() > 100


def test_hidden_notes_stay_hidden(tmp_path):
    path = tmp_path / "form.pdf"
    path.write_bytes(pdf([(b"/Subtype /Stamp " + rect(0), BLACK)]).replace(b"/F 4 ", b"/F 2 "))
    assert np.asarray(page_image(list_pages([str(path)], dpi=72)[0])).min() == 255


def strokes(count):
    """A PDF of two pages: the first has that many curves, the second a rectangle."""
    curve = b"%d %d m %d %d %d %d 100 100 c S\n"
    first = b"".join(curve % tuple(i % n for n in (99, 97, 89, 83, 79, 73)) for i in range(count))
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R 5 0 R]/Count 2>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Contents 4 0 R>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(first), first),
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Contents 6 0 R>>",
        b"<</Length 26>>stream\n1 0 0 rg 0 0 100 100 re f  \nendstream",
    ]  # fmt: skip
    body, places = b"%PDF-1.7\n", []
    for number, part in enumerate(parts, 1):
        places.append(len(body))
        body += b"%d 0 obj" % number + part + b"endobj\n"
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return (
        body + b"xref\n0 7\n0000000000 65535 f \n" + table
        + b"trailer<</Size 7/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % len(body)
    )  # fmt: skip


def test_a_page_that_takes_too_long_is_given_up_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("qvl.inputs.pages.PAGE_SECONDS", 4)
    path = tmp_path / "slow.pdf"
    path.write_bytes(strokes(300_000))
    first, second = list_pages([str(path)], dpi=1200)
    with pytest.raises(MediaError, match=r"page 1: (takes longer|can't be drawn)"):
        page_image(first)
    assert page_image(second).getpixel((50, 50)) == (255, 0, 0)


@pytest.mark.parametrize(
    "content", [b"%PDF-1.7\n", b"%PDF-1.7\n" + b"[" * 100_000, b"%PDF-1.7\nxref\n0 99999999\n"]
)
def test_what_is_no_pdf_is_an_error(tmp_path, content):
    path = tmp_path / "bad.pdf"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"bad\.pdf"):
        list_pages([str(path)])


def test_a_page_larger_than_the_limit_is_refused_before_it_is_drawn(tmp_path):
    path = tmp_path / "vast.pdf"
    path.write_bytes(strokes(1).replace(b"/MediaBox[0 0 100 100]", b"/MediaBox[0 0 99999 99999]"))
    (first, *_) = list_pages([str(path)])
    with pytest.raises(MediaError, match=r"pixels|drawn"):
        page_image(first)
