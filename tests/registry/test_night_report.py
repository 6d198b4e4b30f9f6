import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tasks.errors import StoreError
from tasks.registry import night_report, plots
from tasks.registry.night_facts import Standing
from tests.registry import samples

EVIL = "<script>alert(1)</script> [red]x[/red] \x1b[31m\n| `y`"


class Page(HTMLParser):
    """Collects tags and what they point at."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "action", "data")]
        if tag not in ("meta", "link", "br", "line", "circle", "rect", "path", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def printed(facts, *, terminal=False, width=100):
    output = io.StringIO()
    console = Console(
        file=output,
        width=width,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
    )
    night_report.terminal_table(facts, console)
    return output.getvalue()


def evil(**changes):
    rows = (
        samples.row(EVIL, 1.0, 0.85, reasons=(EVIL,)),
        samples.row("third", 0.7, 0.8, "rejected", reasons=(EVIL,)),
    )
    return samples.night(name=EVIL, variants=rows, note=EVIL, pointers={EVIL: EVIL}, **changes)


def test_table_tells_the_champion_and_its_ratios_in_a_hundred_columns():
    text = printed(samples.night())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in text
    (champion,) = [line for line in lines if line.lstrip().startswith("★ slim-int8")]
    for figure in ("85.30", "0.70 [1.50]", "1.00", "1.80", "1,200", "20.0", "6.80×", "3.40×"):
        assert figure in champion
    assert any(re.search(r"baseline, fp32 runtime +86\.00 .* 2\.00× +– *$", li) for li in lines)
    assert any("third" in li and "accuracy lost: 6.00 points" in li for li in lines)
    assert "champion: slim-int8, version 2 (before: int8, version 1)" in text
    assert "overhead 5.0%" in text


def test_terminal_gets_colours_and_the_headings_keep_their_brackets():
    text = printed(samples.night(), terminal=True)
    assert "\x1b[32m" in text
    assert "lost [bound]" in printed(samples.night())


def test_night_without_champion_or_variants_says_so():
    facts = samples.night(variants=(), champion_after=None, eager=None, fp32=None, nodes=())
    assert "No champion yet" in printed(facts)
    assert "No champion yet" in night_report.html(facts)
    assert "No champion yet" in night_report.markdown(facts)


def test_standing_champion_that_is_not_among_tonights_recipes():
    old = Standing("old", "f" * 64, 9)
    facts = samples.night(champion_before=old, champion_after=old)
    assert "champion: old, version 9 (unchanged)" in printed(facts)
    assert "stays champion" in night_report.html(facts)


def test_page_is_whole_and_asks_nothing_of_the_network():
    text = night_report.html(samples.night())
    page = Page(text)
    assert page.open == []
    assert {"svg", "table", "script"} <= set(page.tags)
    assert set(page.links) == {"data:,", "docs/i.html", "http://127.0.0.1:5000/"}
    assert not re.search(r"@import|url\((?!data)|fetch\(|XMLHttpRequest|<img|<iframe", text)
    for word in ("slim-int8", "accuracy lost: 6.00 points", "pressing", "no null", "measured"):
        assert word in text


def test_page_tells_how_alike_the_answers_are_and_how_steady_the_times():
    text = night_report.html(samples.night())
    table = text[text.index("<details>") : text.index("</details>")]
    rows = [re.findall(r"<td>(.*?)</td>", line) for line in table.splitlines() if "<td>" in line]
    assert rows == [
        ["Baseline, PyTorch", "", "", "4.6"],
        ["Baseline, fp32 runtime", "", "", "–"],
        ["slim-int8", "0.0317", "0.041", "2.3"],
        ["int8", "0.0317", "0.041", "2.3"],
        ["third", "0.0317", "&lt; 0.001", "2.3"],
    ]


def test_page_tells_where_the_accuracy_went():
    page = night_report.html(samples.night())
    assert "recall of negative" in page
    assert "lost: news" in page
    assert "-8.00" in page
    assert "+1.50" in page
    assert "3.25" in page
    # texts of the data are shown, never obeyed
    assert "good &lt;i&gt;film&lt;/i&gt;" in page
    assert "positive: 91% before, 12% after" in page


def test_page_tells_which_layers_lose_it_and_what_could_not_be_undone():
    page = night_report.html(samples.night())
    assert "on 256 validation texts, in PyTorch, it loses 5.50 points and 0.1234 nats" in page
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in page.splitlines()]
    assert ["layer 1", "leaving it in float", "+0.1000", "+4.50"] in rows
    assert ["pooler", "the baseline&#39;s own", "-0.0200", "-1.00"] in rows
    assert "not put back: layer 0 (&lt;i&gt;why&lt;/i&gt;)" in page
    assert "No part brings anything back" not in page


def test_page_tells_what_the_effect_is_proven_by():
    assert '<span class="sub">50% zeros</span>' in night_report.html(samples.night())


def test_page_shows_every_node_below_its_parent():
    order = [(depth, node.technique) for depth, node in night_report.tree(samples.night().nodes)]
    assert order == [
        (0, "baseline"),
        (1, "pruning.structured"),
        (2, "quantization.dynamic"),
        (1, "quantization.dynamic"),
    ]


def test_markup_in_names_is_shown_and_not_obeyed():
    facts = evil(links={"page": "javascript:alert(1)"})
    page = Page(night_report.html(facts))
    assert page.tags.count("script") == 1
    assert not [link for link in page.links if "javascript" in link]
    assert any("<script>alert(1)</script>" in text for text in page.texts)
    for terminal in (False, True):
        text = printed(facts, terminal=terminal, width=300)
        assert "[red]x[/red]" in text
        assert "\x1b[31m|" not in text.replace(" ", "")
    table = [li for li in night_report.markdown(facts).splitlines() if li.startswith("|")]
    assert len(table) == 6
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 10 for line in table)
    assert not any("<script" in line.replace("\\<", "") for line in table)
    assert "javascript" not in night_report.markdown(facts)


def test_facts_survive_their_json(tmp_path):
    facts = samples.night()
    text = json.dumps(night_report.to_json(facts), allow_nan=False)
    again = night_report.from_json(json.loads(text))
    assert again == facts
    assert night_report.html(again) == night_report.html(facts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 99}, "format 99"),
        ({"seconds": "long"}, "seconds"),
        ({"variants": 3}, "variants"),
    ],
)
def test_json_of_another_kind_is_refused_in_one_line(change, said):
    with pytest.raises(StoreError, match=said) as caught:
        night_report.from_json({**night_report.to_json(samples.night()), **change})
    assert "\n" not in str(caught.value)


def test_page_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    night_report.write_html(samples.night(), path)
    before = path.read_text()
    assert before.rstrip().endswith("</html>")

    def fail(facts):
        raise OSError("no space left")

    monkeypatch.setattr(night_report, "html", fail)
    with pytest.raises(OSError, match="no space"):
        night_report.write_html(samples.night(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == before


def test_marks_are_placed_by_latency_accuracy_and_size():
    points = [
        plots.Point("slow", 8.0, 0.86, 90_000_000, "eager", "slow"),
        plots.Point("fast", 1.0, 0.85, 22_500_000, "champion", "fast"),
    ]
    svg = plots.pareto(points, [], floor=0.84)
    marks = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', svg)
    slow, fast = [tuple(map(float, mark)) for mark in marks]
    assert fast[0] < slow[0]
    assert fast[1] > slow[1]  # SVG's y grows downwards
    assert slow[2] == pytest.approx(2 * fast[2])  # a quarter of the bytes: half the radius


def test_labels_do_not_cover_one_another():
    points = [
        plots.Point(f"variant-{i}", 1.0 + 0.04 * i, 0.85, 20_000_000, "passed", "")
        for i in range(4)
    ]
    svg = plots.pareto(points)
    boxes = [
        (float(x), float(y) - 11, float(x) + 6.0 * 9, float(y))
        for x, y in re.findall(r'class="name passed" x="([\d.]+)" y="([\d.]+)"', svg)
    ]
    assert len(boxes) == 4
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_confusion_counts_stand_in_rows_of_true_labels():
    svg = plots.confusion(("no & never", "yes"), ((7, 1), (2, 1234)), "answers")
    assert re.findall(r">([\d,]+)</text>", svg) == ["7", "1", "2", "1,234"]
    assert "no &amp; never" in svg
