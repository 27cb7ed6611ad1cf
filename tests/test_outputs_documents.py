"""outputs.html, tables, documents, qwen_markdown and export: pages that parse, and come out clean."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl.catalog.generations.generation import SEEN_PIXELS
from qvl.errors import OutputError
from qvl.geometry import Size
from qvl.outputs.blocks import Block, Run
from qvl.outputs.documents import parse_document
from qvl.outputs.export import (
    clean_html,
    escape_markdown,
    html_table,
    markdown_table,
    to_csvs,
    to_dict,
    to_html,
    to_json,
    to_layout,
    to_markdown,
)
from qvl.outputs.html import MAX_DEPTH, parse_html
from qvl.outputs.mapping import picture_map
from qvl.outputs.repair import RepairLog
from qvl.outputs.tables import MAX_COLUMNS, Draft, latex_table, lay_out, pipe_table

PAGE = Size(1532, 1014)  # seen by Qwen2.5-VL at 1008 x 1540
LOG = RepairLog()


def parse(text, family="qwen2_5_vl", **options):
    return parse_document(text, family, picture_map(PAGE, family), **options)


def shape(page):
    return [(b.kind, b.text) for b in page.walk()]


COOKBOOK = """```html
<html><body>
<h2 data-bbox="310 94 658 132">Qwen2.5 Technical Report</h2>
 <p data-bbox="427 154 542 182">Qwen Team</p>
 <div class="image" data-bbox="262 195 708 272"><img data-bbox="262 195 708 272"/></div>
</body></html>
```"""

# ------------------------------------------------------------------------------------------------------- html


def tags(text):
    root, repairs = parse_html(text)

    def plain(node):
        return (node.tag, [plain(c) for c in node.children]) if node.tag else node.text

    return [plain(c) for c in root.children], repairs


def test_well_formed_html_needs_no_repair():
    tree, repairs = tags('<html><body><p class="a">x <b>y</b></p><br/></body></html>')
    assert tree == [("html", [("body", [("p", ["x ", ("b", ["y"])]), ("br", [])])])]
    assert repairs == ()


def test_what_html_closes_by_itself_is_no_repair():
    tree, repairs = tags("<ul><li>a<li>b</ul><p>x<p>y</p><table><tr><td>1<td>2<tr><td>3</table>")
    assert tree[0] == ("ul", [("li", ["a"]), ("li", ["b"])])
    assert tree[1:3] == [("p", ["x"]), ("p", ["y"])]
    assert tree[3] == ("table", [("tr", [("td", ["1"]), ("td", ["2"])]), ("tr", [("td", ["3"])])])
    assert repairs == ()


def test_formulas_with_less_than_stay_text():
    root, _ = parse_html("<p>a < b, x<y and <z> or a<b</p>")
    assert root.content() == "a < b, x<y and <z> or a<b"


def test_tags_that_documents_do_not_have_stay_text_and_are_said():
    root, repairs = parse_html("<p><custom>x</custom></p>")
    assert root.content() == "<custom>x</custom>"
    assert any("<custom> isn't a tag" in r for r in repairs)


def test_entities_are_read():
    root, _ = parse_html('<p title="&lt;">a &amp;&nbsp;&#8364;</p>')
    assert root.content() == "a &\xa0€"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<div>x", "unclosed <div>"),
        ("x</div>", "stray </div>"),
        ("<h2>x</h3>", "<h2> closed by </h3>"),
        ("<p>x <b>y</p>", "unclosed <b>"),
        ("<p>x</p><p data-bb", "cut-off tag"),
        ("<p>x</p><!-- abc", "cut-off tag"),
        ("<html><body><p>x</p>", "document's end is missing"),
        ("<div>" * 60, "nested deeper"),
    ],
)
def test_repairs_are_said(text, said):
    _, repairs = parse_html(text)
    assert any(said in r for r in repairs), repairs


def test_depth_is_bounded_and_no_text_is_lost():
    root, _ = parse_html("<div>a" * 200 + "z" + "</div>" * 200)
    depth, node = 0, root
    while any(c.tag for c in node.children):
        node = next(c for c in node.children if c.tag)
        depth += 1
    assert depth <= MAX_DEPTH
    assert root.content() == "a" * 200 + "z"


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_parses_as_html(text):
    parse_html(text)


@given(
    st.text("abc <>&;", max_size=60).filter(
        lambda t: "<a" not in t and "<b" not in t and "</" not in t and "&" not in t
    )
)
def test_text_without_tags_is_kept_letter_by_letter(text):
    root, _ = parse_html("<p>" + text + ".")
    assert root.content() == text + "."


# ---------------------------------------------------------------------------------------------------- documents


def test_the_cookbooks_page():
    page = parse(COOKBOOK)
    assert shape(page) == [("heading", "Qwen2.5 Technical Report"), ("paragraph", "Qwen Team"), ("image", "")]
    heading = page.blocks[0]
    assert heading.level == 2
    assert heading.box == pytest.approx(
        (310 * 1014 / 1008, 94 * 1532 / 1540, 658 * 1014 / 1008, 132 * 1532 / 1540)
    )
    assert heading.seen == (310, 94, 658, 132)
    assert page.warnings == page.repairs == ()
    assert page.reason is None


def test_qwen3_html_is_in_thousandths():
    page = parse('<p data-bbox="0 0 500 500">x</p>', "qwen3_vl")
    assert page.blocks[0].box == (0, 0, 507, 766)


@pytest.mark.parametrize(
    ("html", "kind", "text", "form"),
    [
        ('<div class="formula">x^2 &lt; y</div>', "formula", "x^2 < y", "latex"),
        ('<div class="formula machine_printed">x</div>', "formula", "x", "latex"),
        ('<div class="formula.handwritten">x</div>', "formula", "x", "latex"),
        (
            '<div class="music sheet" format="abc notation">X:1\nK:C</div>',
            "music",
            "X:1\nK:C",
            "abc notation",
        ),
        ('<div class="chemical formula" format="smile">CCO</div>', "chemistry", "CCO", "smile"),
        ("<pre>  a\n b</pre>", "code", "  a\n b", ""),
    ],
)
def test_special_blocks_keep_their_code(html, kind, text, form):
    page = parse(html)
    assert [(b.kind, b.text, b.format) for b in page.walk()] == [(kind, text, form)]


def test_an_image_with_its_caption():
    page = parse(
        '<div class="image caption" data-bbox="1 2 30 40"><img data-bbox="1 2 30 40"/>'
        '<p data-bbox="1 41 30 50">Fig. 1</p></div>'
    )
    assert shape(page) == [("image", ""), ("caption", "Fig. 1")]


def test_an_image_with_its_text():
    page = parse('<div class="image ocr" data-bbox="1 2 30 40"><img data-bbox="1 2 30 40"/><p>STOP</p></div>')
    assert shape(page) == [("image", ""), ("image_text", "STOP")]


def test_a_chart_with_its_table():
    page = parse('<div class="chart" data-bbox="1 1 9 9"><table><tr><td>a</td><td>1</td></tr></table></div>')
    assert [b.kind for b in page.walk()] == ["chart", "table"]
    assert page.tables[0].rows() == [["a", "1"]]


def test_lists_nest():
    page = parse("<ol><li>one</li><li>two<ul><li>in</li></ul></li></ol>")
    outer = page.blocks[0]
    assert outer.ordered
    assert [i.text for i in outer.children] == ["one", "two"]
    assert outer.children[1].children[0].children[0].text == "in"
    assert not outer.children[1].children[0].ordered


def test_styles_become_runs():
    page = parse("<p>a <b>b <i>c</i></b><sup>2</sup></p>")
    assert page.blocks[0].runs == (
        Run("a "),
        Run("b ", frozenset(["bold"])),
        Run("c", frozenset(["bold", "italic"])),
        Run("2", frozenset(["sup"])),
    )


def test_blanks_fold_and_breaks_stay():
    assert parse("<p>  a \n  b<br/> c  </p>").blocks[0].text == "a b\nc"


def test_scripts_and_styles_are_no_text():
    page = parse("<p>a<script>alert(1)</script>b</p><style>table{color:red}</style>")
    assert shape(page) == [("paragraph", "ab")]


def test_a_span_with_a_box_of_its_own_is_a_block():
    page = parse('<div>a <span data-bbox="0 0 504 770">b</span> c</div>')
    assert [(b.text, b.box) for b in page.walk()] == [("a", None), ("b", (0, 0, 507, 766)), ("c", None)]


def test_loose_text_becomes_paragraphs():
    assert shape(parse("<div>a</div>b<p>c</p>d")) == [
        ("paragraph", "a"),
        ("paragraph", "b"),
        ("paragraph", "c"),
        ("paragraph", "d"),
    ]


def test_reading_order_is_the_order_written():
    page = parse('<p data-bbox="500 1 900 9">right</p><p data-bbox="1 1 400 9">left</p>')
    assert page.text == "right\nleft"


def test_polygons_become_the_box_around_them():
    page = parse('<p data-polygon="0 0 1008 0 1008 770 0 770">x</p>')
    assert page.blocks[0].box == (0, 0, 1014, 766)


def test_a_bbox_without_numbers_is_said():
    page = parse('<p data-bbox="1 2 3">x</p><p data-bbox="a b c d">y</p>')
    assert [b.box for b in page.blocks] == [None, None]
    assert page.warnings == ("2 data-bbox attributes without 4 numbers left out",)


def test_boxes_over_the_edge_are_clamped_and_said():
    page = parse('<p data-bbox="-5 0 1010 900">x</p>')
    assert page.blocks[0].box.x1 == 0
    assert any("clamped" in w for w in page.warnings)


def test_numbers_in_another_convention_are_suspected():
    page = parse('<p data-bbox="0 0 900 1500">x</p>', "qwen3_vl")
    assert page.suspected == SEEN_PIXELS


def test_boxes_without_a_picture_are_an_error():
    with pytest.raises(OutputError, match="1 boxes"):
        parse_document('<p data-bbox="1 2 3 4">x</p>', "qwen2_5_vl", None)


def test_text_without_boxes_needs_no_picture():
    assert shape(parse_document("<p>x</p>", "qwen2_5_vl", None)) == [("paragraph", "x")]


@pytest.mark.parametrize("text", ["", "I can't read this page.", "<think>hm", "<p></p>", "```html\n```"])
def test_a_reply_without_a_page_gives_none_and_a_reason(text):
    page = parse(text)
    assert page.blocks == ()
    assert page.reason


def test_a_cut_off_page_keeps_what_was_written():
    page = parse(
        '```html\n<html><body><p data-bbox="1 2 30 40">whole</p><table><tr><td>1</td><td>2</td></tr><tr><td>3</t'
    )
    assert page.text == "whole"
    assert page.tables[0].rows() == [["1", "2"], ["3", ""]]
    assert any("fence" in r for r in page.repairs)
    assert any("cut-off tag" in r for r in page.repairs)


# ------------------------------------------------------------------------------------------------------- tables


def test_spans_push_later_cells_aside():
    page = parse(
        '<table><tr><td rowspan="2">A</td><td colspan="2">B</td></tr><tr><td>1</td><td>2</td></tr></table>'
    )
    table = page.tables[0]
    assert (table.num_rows, table.num_columns, table.has_spans) == (2, 3, True)
    assert table.rows() == [["A", "B", ""], ["", "1", "2"]]


def test_spans_beyond_the_table_are_cut_and_said():
    page = parse('<table><tr><td rowspan="999">A</td><td colspan="99999">B</td></tr></table>')
    table = page.tables[0]
    assert table.num_rows == 1
    assert table.num_columns <= MAX_COLUMNS
    assert any("span cut" in r for r in page.repairs)


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1e9", "²"])
def test_spans_that_are_no_numbers_count_as_one(value):
    assert parse(f'<table><tr><td colspan="{value}">A</td></tr></table>').tables[0].num_columns == 1


def test_headers_and_captions():
    page = parse(
        "<table><caption>Sales</caption><thead><tr><td>m</td></tr></thead><tbody><tr><th>x</th></tr></tbody></table>"
    )
    assert shape(page)[0] == ("caption", "Sales")
    assert [c.header for c in page.tables[0].cells] == [True, True]


def test_cell_boxes_are_mapped():
    page = parse('<table><tr><td data-bbox="0 0 504 770">x</td></tr></table>')
    assert page.tables[0].cells[0].box == (0, 0, 507, 766)


def test_text_between_rows_is_kept_and_said():
    page = parse("<table><tr><td>1</td></tr><p>loose</p></table>")
    assert ("paragraph", "loose") in shape(page)
    assert any("between table rows" in r for r in page.repairs)


def test_cells_outside_rows_are_kept_and_said():
    page = parse("<table><td>1</td></table>")
    assert page.tables[0].rows() == [["1"]]
    assert any("outside a row" in r for r in page.repairs)


@given(
    st.lists(
        st.lists(st.builds(Draft, st.just("x"), st.integers(1, 4), st.integers(1, 4)), max_size=5),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=200, deadline=None)
def test_no_two_cells_share_a_place(rows):
    table = lay_out(rows, RepairLog())
    places = [
        (r, c)
        for cell in table.cells
        for r in range(cell.row, cell.row + cell.rowspan)
        for c in range(cell.column, cell.column + cell.colspan)
    ]
    assert len(places) == len(set(places))
    assert len(table.cells) == sum(map(len, rows))
    assert table.num_rows <= len(rows)


def test_latex_tables():
    table = latex_table(
        r"\begin{tabular}{|c|c|} \hline \multicolumn{2}{|c|}{\textbf{Head}} \\ \hline"
        r" \multirow{2}{*}{A} & 1 \\ \cline{2-2} & 2 \& 3 \\ \hline \end{tabular}",
        LOG,
    )
    assert table.rows() == [["Head", ""], ["A", "1"], ["", "2 & 3"]]
    assert [(c.rowspan, c.colspan) for c in table.cells] == [(1, 2), (2, 1), (1, 1), (1, 1)]


def test_an_unclosed_latex_table_is_said():
    log = RepairLog()
    assert latex_table(r"\begin{tabular}{cc} a & b \\ c & d", log).rows() == [["a", "b"], ["c", "d"]]
    assert "unclosed LaTeX" in log.lines()[0]


def test_pipe_tables():
    table = pipe_table(["| a | b |", "|---|:-:|", "| 1 \\| 2 | |"], LOG)
    assert table.rows() == [["a", "b"], ["1 | 2", ""]]
    assert [c.header for c in table.cells] == [True, True, False, False]


# ---------------------------------------------------------------------------------------------- qwenvl markdown

MARKDOWN = r"""# Title

Some **bold** text
on two lines. <!-- Table (100,200,500,400) -->
\begin{tabular}{cc}
a & b \\
1 & 2 \\
\end{tabular}

<!-- Image (10, 20, 300, 400) -->

- a
- b
1. x

$$
x^2
$$
| h |
|---|
| c |
"""


def test_qwen3_markdown_page():
    page = parse(MARKDOWN, "qwen3_vl")
    assert [b.kind for b in page.blocks] == [
        "heading",
        "paragraph",
        "table",
        "image",
        "list",
        "list",
        "formula",
        "table",
    ]
    table, image = page.blocks[2], page.blocks[3]
    assert table.box == pytest.approx((101.4, 306.4, 507, 612.8))
    assert table.table.rows() == [["a", "b"], ["1", "2"]]
    assert image.box == pytest.approx((10.14, 30.64, 304.2, 612.8))
    assert page.blocks[1].text == "Some bold text\non two lines."
    assert page.blocks[6].text == "x^2"
    assert page.repairs == ()


def test_a_table_comment_without_a_table_keeps_its_place_and_is_said():
    page = parse("<!-- Table (0,0,500,500) -->\n\ntext", "qwen3_vl")
    assert [b.kind for b in page.blocks] == ["table", "paragraph"]
    assert page.blocks[0].box == (0, 0, 507, 766)
    assert any("without a table" in r for r in page.repairs)


def test_markdown_boxes_without_a_picture_are_an_error():
    with pytest.raises(OutputError, match="image's size"):
        parse_document("<!-- Image (1,2,3,4) -->", "qwen3_vl", None)


def test_an_unclosed_formula_is_said():
    page = parse("# a\n$$\nx^2", "qwen3_vl")
    assert page.blocks[1].text == "x^2"
    assert any("unclosed $$" in r for r in page.repairs)


def test_plain_prose_is_a_page_when_markdown_is_asked_for():
    assert shape(parse("just text", format="markdown")) == [("paragraph", "just text")]


# ------------------------------------------------------------------------------------------------------- export

RICH = """<h1 data-bbox="10 10 500 40">Report <i>2024</i></h1>
<p data-bbox="10 50 500 90">a * b_c [x] &lt;script&gt; $x_1*y$</p>
<table data-bbox="10 100 500 300"><tr><td rowspan=2>A</td><td>=1+1</td></tr><tr><td>-5</td></tr></table>
<table><tr><th>h|i</th></tr><tr><td>-x</td></tr></table><ul><li>one<ol><li>in</li></ol></li></ul>
<div class="formula" data-bbox="1 1 9 9">x^2</div><blockquote><p>q</p></blockquote><pre>a ``` b</pre>
<div class="image" data-bbox="1 1 50 50"><img data-bbox="1 1 50 50" src="http://example.org/x.png"/></div>"""


def test_markdown_export():
    text = to_markdown([parse(RICH)])
    assert "# Report *2024*" in text
    assert "a \\* b_c \\[x\\] \\<script> $x_1*y$" in text
    assert '<td rowspan="2">A</td>' in text
    assert "| h\\|i |\n| --- |\n| -x |" in text
    assert "- one\n  1. in" in text
    assert "$$\nx^2\n$$" in text
    assert "> q" in text
    assert "````\na ``` b\n````" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("# no heading", "\\# no heading"),
        ("1. no list", "1\\. no list"),
        ("- no list", "\\- no list"),
        ("snake_case", "snake_case"),
        ("_x_", "\\_x\\_"),
        ("a*b", "a\\*b"),
        ("`c`", "\\`c\\`"),
        ("$a_b$", "$a_b$"),
        ("> no quote", "\\> no quote"),
        ("-5 degrees", "-5 degrees"),
        ("\\*", "\\\\\\*"),
    ],
)
def test_markdown_escapes(text, escaped):
    assert escape_markdown(text) == escaped


def test_html_export_is_clean():
    text = to_html([parse(RICH)])
    for bad in ("<script", "<img", "src=", "http:", "onerror", "style="):
        assert bad not in text
    assert "&lt;script&gt;" in text
    assert 'data-bbox="10.1 9.9 503 39.8"' in text
    assert "<h1" in text
    assert '<td rowspan="2">A</td>' in text


ATTACKS = [
    '<p onclick="x()">a</p>',
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)">a</a>',
    "<script>alert(1)</script>",
    "<svg onload=alert(1)>",
    '<p style="background:url(http://x)">a</p>',
    "<iframe src=http://x></iframe>",
    '<div class="formula"><script>alert(1)</script></div>',
    '<div class="formula" format="&quot;&gt;&lt;script&gt;">x</div>',
    '<table><tr><td colspan="1 onmouseover=x">a</td></tr></table>',
    "<p>&lt;img src=x onerror=alert(1)&gt;</p>",
    '<div class="music sheet" format="x" onload="y">&lt;/pre&gt;&lt;script&gt;</div>',
    "<title><script>x</script></title>",
    "<form action=http://x><button>a</button></form>",
    "<meta http-equiv=refresh content=0>",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_exported_html_acts_or_loads(attack):
    """Read back by a real parser: only harmless elements and attributes are there."""
    from lxml import html as lxml_html

    text = to_html([parse("<p>page</p>" + attack)])
    tree = lxml_html.fromstring(text)
    allowed = {"class", "data-bbox", "data-page", "data-format", "rowspan", "colspan", "charset"}
    for element in tree.iter():
        assert element.tag not in (
            "script",
            "img",
            "a",
            "svg",
            "iframe",
            "form",
            "style",
            "link",
            "object",
            "button",
        )
        assert set(element.attrib) <= allowed, element.attrib


def test_clean_html_is_the_last_guard():
    assert clean_html('<p onclick="x">a<script>b</script><a href="http://x">c</a></p>') == "<p>ac</p>"


def test_csv_export_reads_back_and_runs_no_formula():
    sheets = to_csvs([parse(RICH)])
    assert list(sheets) == ["page1_table1", "page1_table2"]
    assert list(csv.reader(io.StringIO(sheets["page1_table1"]))) == [["A", "'=1+1"], ["", "-5"]]
    assert list(csv.reader(io.StringIO(sheets["page1_table2"]))) == [["h|i"], ["'-x"]]


def test_json_export_holds_the_whole_tree():
    page = parse(RICH)
    plain = json.loads(to_json([page]))["pages"][0]
    assert (plain["width"], plain["height"], plain["page"]) == (1014, 1532, 1)
    kinds = [b["kind"] for b in plain["blocks"]]
    assert kinds == ["heading", "paragraph", "table", "table", "list", "formula", "quote", "code", "image"]
    assert plain["blocks"][2]["table"]["cells"][0] == {
        "row": 0,
        "column": 0,
        "rowspan": 2,
        "colspan": 1,
        "header": False,
        "text": "A",
    }
    assert plain["blocks"][4]["children"][0]["children"][0]["ordered"] is True


def test_layout_export_is_a_flat_list_of_places():
    layout = to_layout(parse(RICH))
    assert layout["page_info"] == {"page_no": 1, "height": 1532, "width": 1014}
    assert [r["category_type"] for r in layout["layout_dets"]] == [
        "title",
        "plain text",
        "table",
        "isolate_formula",
        "figure",
    ]
    assert [r["order"] for r in layout["layout_dets"]] == [1, 2, 3, 4, 5]
    first = layout["layout_dets"][0]
    x1, y1, x2, y2 = 10.1, 9.9, 503.0, 39.8
    assert first["poly"] == [x1, y1, x2, y1, x2, y2, x1, y2]
    assert layout["layout_dets"][3]["latex"] == "x^2"
    assert layout["layout_dets"][2]["html"].startswith("<table>")


def test_layout_tells_captions_of_figures():
    page = parse('<div class="image caption" data-bbox="1 1 9 9"><p data-bbox="1 10 9 20">Fig</p></div>')
    assert [r["category_type"] for r in to_layout(page)["layout_dets"]] == ["figure", "figure_caption"]


def test_several_pages_are_kept_apart():
    pages = [parse("<p>a</p>", number=1), parse("<p>b</p>", number=2)]
    assert to_markdown(pages) == "<!-- page 1 -->\n\na\n\n<!-- page 2 -->\n\nb\n"
    assert to_html(pages).count("<section") == 2
    assert [p["page"] for p in json.loads(to_json(pages))["pages"]] == [1, 2]


def test_an_exported_table_parses_to_itself():
    table = parse(RICH).tables[0]
    again = parse(html_table(table)).tables[0]
    assert again == table
    assert parse(markdown_table(table)).tables[0] == table


def test_exported_html_parses_to_the_same_blocks():
    page = parse("<h1>a</h1><p>b <b>c</b></p><ul><li>d</li></ul><table><tr><td>1</td><td>2</td></tr></table>")
    assert parse(to_html([page])).blocks == page.blocks


def test_a_page_of_nothing_exports_to_nothing():
    page = parse("no page")
    assert to_markdown([page]) == "\n"
    assert to_csvs([page]) == {}
    assert to_dict(page)["reason"]


# --------------------------------------------------------------------------------------------------------- fuzz

PIECES = st.lists(
    st.sampled_from(
        [
            "<p",
            ' data-bbox="1 2 30 40"',
            ">",
            "</p>",
            "<table>",
            "<tr>",
            "<td colspan=3>",
            "</td>",
            "</table>",
            "<ul>",
            "<li>",
            "<b>",
            "</b>",
            '<div class="image">',
            "</div>",
            "<!--",
            "-->",
            "<h1>",
            "text",
            "&amp;",
            "<",
            "$$",
            "# a\n",
            "| a |\n",
            "|---|\n",
            "\n",
            "- x\n",
            "\\begin{tabular}{c}",
            "a & b \\\\",
            "\\end{tabular}",
            "\\multirow{2}{*}{",
            "<!-- Table (1,2,3,4) -->",
            "```",
            "<script>",
            "</think>",
        ]
    ),
    max_size=40,
).map("".join)


@given(PIECES | st.text(max_size=100), st.sampled_from(["auto", "html", "markdown"]))
@settings(max_examples=300, deadline=None)
def test_no_text_raises_and_every_export_can_be_written(text, format):
    page = parse(text, "qwen3_vl", format=format)
    assert (not page.blocks) == (page.reason is not None)
    for out in (to_markdown([page]), to_html([page]), to_json([page]), *to_csvs([page]).values()):
        out.encode("utf-8")
    json.dumps(to_layout(page))
    assert "<script" not in to_html([page])
    for block in page.walk():
        assert isinstance(block, Block)
        if block.box:
            assert 0 <= block.box.x1 <= block.box.x2 <= PAGE.width


@pytest.mark.parametrize(
    "piece",
    [
        "<p>x",
        "<table><tr><td rowspan=999 colspan=99>",
        "<b>",
        "<li>",
        "<div>",
        "| a |\n",
        "$$\n",
        "- a\n",
        "&amp",
        "<p ",
    ],
)
def test_a_lot_of_garbage_parses(piece):
    page = parse("<p>x</p>\n\n" + piece * (20_000 // len(piece)))
    assert len(page.repairs) < 20


# --- lists keep their numbers


def test_an_ordered_list_keeps_its_start_and_its_items_numbers():
    items = '<li>three</li><li>four</li><li value="10">ten</li><li>eleven</li>'
    page = parse(f'<ol start="3">{items}</ol><ul start="3"><li>x</li></ul>')
    assert [number for number, _ in page.blocks[0].numbered()] == [3, 4, 10, 11]
    assert to_markdown([page]) == "3. three\n4. four\n10. ten\n11. eleven\n\n- x\n"
    again = to_html([page])
    assert '<ol start="3">' in again
    assert '<li value="10">' in again
    listed = json.loads(to_json([page]))["pages"][0]["blocks"][0]
    assert (listed["start"], [item.get("value") for item in listed["children"]]) == (
        3,
        [None, None, 10, None],
    )


@pytest.mark.parametrize("bad", ["x", "1e9", "99999999", "", "-"])
def test_a_start_that_is_no_number_is_left_out(bad):
    assert parse(f'<ol start="{bad}"><li>a</li></ol>').blocks[0].start == 1


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3. a\n4. b\n", [3, 4]),
        ("1. a\n1. b\n1. c\n", [1, 2, 3]),
        ("2) a\n5) b\n6) c\n", [2, 5, 6]),
    ],
)
def test_a_markdown_list_keeps_its_numbers(text, numbers):
    page = parse("# t\n\n" + text, "qwen3_vl")
    listed = next(block for block in page.blocks if block.kind == "list")
    assert [number for number, _ in listed.numbered()] == numbers
