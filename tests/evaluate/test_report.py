"""The results of evaluations as tables, pictures and a page."""

from __future__ import annotations

import base64
import html
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from yarn_gguf import YarnGGUFError
from yarn_gguf.cli import main
from yarn_gguf.evaluate.show.plots import figure_of, styles
from yarn_gguf.evaluate.show.report import Section, dump, read_sections, write_report
from yarn_gguf.evaluate.show.tables import table_of

MODEL = {"file": "<m>.gguf", "architecture": "llama", "original_context": 8192, "rope_theta": 1e5}


def losses(scaling: str, place: str, start: int, stop: int, perplexity: float, **more) -> dict:
    by = "window" if "," in place and "-" not in place else "positions"
    interval = {"low": perplexity * 0.9, "high": perplexity * 1.1, "error": 0.05}
    interval |= {"change": 0.125, "change_low": 0.12, "change_high": 0.13}
    middle = {"perplexity": perplexity, "loss": float(np.log(perplexity))}
    return {"scaling": scaling, by: place, "start": start, "stop": stop} | middle | interval | more


def result(kind: str, rows: list[dict], **more) -> dict:
    return {
        "kind": kind,
        "command": f"yarn-gguf eval {kind} x",
        "version": "1",
        "model": MODEL,
        **more,
        "rows": rows,
    }


POSITIONS = result(
    "perplexity",
    [
        losses(scaling, place, start, stop, perplexity)
        for scaling, values in (("none", (24.5, 171.25)), ("yarn:4", (26.0, 25.75)))
        for (place, start, stop), perplexity in zip(
            (("0 - 8,192", 0, 8192), ("8,192 - 16,383", 8192, 16383)), values, strict=True
        )
    ],
    texts=[{"name": "emma", "tokens": 16384}],
)

WINDOWS = result("perplexity", [losses("ntk", "4,096", 0, 8192, 21.5), losses("ntk", "8,192", 0, 8192, 19.5)])

SWEEP = result(
    "perplexity",
    [
        losses(
            f"yarn:2,attention_factor={v}",
            "0 - 99",
            0,
            99,
            20 + v,
            of="yarn:2",
            swept="attention_factor",
            value=v,
        )
        for v in (1.0, 1.1)
    ],
)

PASSKEY = result(
    "passkey",
    [
        {"scaling": "none", "length": length, "depth": depth, "found": found, "trials": 4}
        for length, depth, found in ((4096, 0.0, 4), (4096, 1.0, 3), (8192, 0.0, 1), (8192, 1.0, 0))
    ],
    keys=1,
    chat=False,
)

TASKS = result(
    "tasks",
    [
        {
            "scaling": s,
            "task": "arc",
            "metric": "acc",
            "questions": 50,
            "value": v,
            "low": v - 0.1,
            "high": v + 0.1,
        }
        | {"difference": v - 0.5, "difference_low": v - 0.55, "difference_high": v - 0.45}
        for s, v in (("none", 0.5), ("yarn:4", 0.375))
    ],
)

ADVICE = result(
    "advise",
    [
        {"scaling": scaling, "role": role, "advised": scaling == "dynamic-yarn", "documents": 2}
        | {"loss": (within + beyond) / 2, "within": within, "beyond": beyond, "end": beyond + 0.1}
        | {"against_default": (within + beyond) / 2 - 3.1, "against_default_error": 0.002}
        | {"against_default_reach": 0.004}
        | {"cost": within - 3.0, "cost_error": 0.001}
        for scaling, role, within, beyond in (
            ("none", "unscaled", 3.0, 5.0),
            ("yarn:2", "default", 3.1, 3.1),
            ("dynamic-yarn", "reference", 3.0, 3.1),
            *((f"yarn:{i}", "finalist", 3.2, 3.2 + i / 100) for i in range(3, 10)),
            ("linear:2", "dropped", 3.5, 3.5),
        )
    ],
    context=16384,
)

MANY = result("perplexity", [losses(f"yarn:{i}", "0 - 99", 0, 99, 21) for i in range(2, 9)])

ALL = {
    "positions": POSITIONS,
    "windows": WINDOWS,
    "sweep": SWEEP,
    "passkey": PASSKEY,
    "tasks": TASKS,
    "many": MANY,
    "advice": ADVICE,
}


@pytest.mark.parametrize(
    ("name", "columns", "last"),
    [
        (
            "positions",
            ["positions", "none", "yarn:4"],
            ["8,192 - 16,383", "171.25 (154.12 - 188.38)", "25.75 (+12.5 ± 0.5%)"],
        ),
        ("windows", ["window", "ntk"], ["8,192", "19.50 (17.55 - 21.45)"]),
        (
            "sweep",
            ["positions", "yarn:2,attention_factor=1.0", "yarn:2,attention_factor=1.1"],
            ["0 - 99", "21.00 (18.90 - 23.10)", "21.10 (+12.5 ± 0.5%)"],
        ),
        ("many", ["scaling", "0 - 99"], ["yarn:8", "21.00 (+12.5 ± 0.5%)"]),
        ("passkey", ["scaling", "tokens", "0%", "100%", "all"], ["none", "8,192", "25%", "0%", "12%"]),
        (
            "tasks",
            ["task", "metric", "questions", "none", "yarn:4"],
            ["arc", "acc", "50", "50.0 ± 10.0", "37.5 ± 10.0 (-12.5 ± 5.0)"],
        ),
        (
            "advice",
            [
                *("scaling", "score", "against yarn:2", "trained context", "against none"),
                *("beyond it", "its last quarter"),
            ],
            ["yarn:8", "25.53", "+15.0 ± 0.2%", "24.53", "+22.1 ± 0.1%", "26.58", "29.37"],
        ),
    ],
)
def test_each_kind_has_its_table(name: str, columns: list[str], last: list[str]) -> None:
    table = table_of(ALL[name])
    assert table.columns == columns
    assert [cell[: len(wanted)] for cell, wanted in zip(table.rows[-1], last, strict=True)] == last
    assert table.markdown().splitlines()[0] == f"| {' | '.join(columns)} |"


def files(folder: Path) -> list[str]:
    for name, each in ALL.items():
        (folder / f"{name}.json").write_text(json.dumps(each))
    return [str(folder / f"{name}.json") for name in ALL]


def test_a_report_holds_every_table_and_a_picture_of_each(tmp_path: Path, capsys) -> None:
    page, pictures = tmp_path / "report.html", tmp_path / "pictures"
    assert main(["eval", "report", *files(tmp_path), "-o", str(page), "--pictures", str(pictures)]) == 0
    text = page.read_text()
    for each in ALL.values():
        for cell in (cell for row in table_of(each).rows for cell in row):
            assert html.escape(cell) in text
        assert each["command"] in text
    drawings = [
        base64.b64decode(each) for each in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    ]
    assert len(drawings) == len(ALL) == len(set(drawings))
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert sorted(each.name for each in pictures.iterdir()) == [
        f"{i}-{each['kind']}.png" for i, each in enumerate(ALL.values(), 1)
    ]
    assert str(page) in capsys.readouterr().out


def test_a_report_needs_no_other_file_and_escapes_names(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(read_sections(files(tmp_path)), page)
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|<script|<link', text)
    assert "&lt;m&gt;.gguf" in text and "<m>" not in text
    assert text.count("original context") == 1  # one model, once
    assert "emma (16,384 tokens)" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no results of an evaluation"),
        ('{"kind": "passkey", "rows": []}', "has no results of an evaluation"),
        ('{"kind": "passkey", "rows": [{"depth": 0}]}', "is not as an evaluation writes it"),
        (json.dumps({name: value for name, value in PASSKEY.items() if name != "model"}), "is not as an"),
        (json.dumps(PASSKEY | {"rows": [3]}), "is not as an evaluation writes it (AttributeError"),
    ],
)
def test_a_file_that_no_evaluation_wrote_is_refused(
    tmp_path: Path, capsys, content: str, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    assert main(["eval", "report", str(path), "-o", str(tmp_path / "report.html")]) == 1
    said = capsys.readouterr().err
    assert f"{path} {message}" in said and "--json" in said
    assert not (tmp_path / "report.html").exists()


def test_the_facts_of_advice_are_in_words_and_empty_ones_left_out(tmp_path: Path, capsys) -> None:
    path, page = tmp_path / "a.json", tmp_path / "report.html"
    facts = {"trained_context": 160, "lead": 0.0, "lead_error": 0.0, "not_tried": "", "best": "yarn:2"}
    for lead, line in ((0.0, False), (0.02, True)):
        path.write_text(json.dumps(ADVICE | facts | {"lead": lead, "lead_error": 0.001}))
        assert main(["eval", "report", str(path), "-o", str(page)]) == 0
        text = page.read_text()
        assert "trained context, tokens: 160" in text and "best score: yarn:2" in text
        assert not re.search(r"lead|not.tried|trained_context", text)
        assert ("above the best: +2.02 ± 0.10%" in text) == line


def test_results_that_are_given_twice_are_refused(tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(PASSKEY))
    assert main(["eval", "report", str(path), f"{tmp_path}/./a.json", "-o", str(tmp_path / "r.html")]) == 1
    assert f"{path} is there 2 times: give each once" in capsys.readouterr().err


def test_a_page_in_the_place_of_its_results_is_refused(tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(PASSKEY))
    assert main(["eval", "report", str(path), "-o", str(tmp_path / "b.json")]) == 1
    assert "b.json: name an HTML page" in capsys.readouterr().err
    link = tmp_path / "a.html"
    link.symlink_to(path)
    assert main(["eval", "report", str(path), "-o", str(link)]) == 1
    assert "a.html is also an input: name another file" in capsys.readouterr().err
    assert json.loads(path.read_text()) == PASSKEY


def test_a_link_to_a_page_stays_one(tmp_path: Path) -> None:
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    page.write_text("an old one")
    link.symlink_to(page)
    write_report([Section.of(PASSKEY)], link)
    assert link.is_symlink()
    assert page.read_text().startswith("<!doctype html>")


def test_a_number_that_is_not_finite_is_null_in_json() -> None:
    rows = [{"scaling": "none", "low": math.nan, "losses": (1.5, math.inf)}]
    written = json.loads(dump({"rows": rows}), parse_constant=pytest.fail)
    assert written == {"rows": [{"scaling": "none", "low": None, "losses": [1.5, None]}]}


def test_the_mean_over_all_positions_is_in_the_table_and_not_on_the_curve() -> None:
    rows = [*POSITIONS["rows"], losses("none", "all", 0, 16383, 60.0, whole=True)]
    shown = result("perplexity", [row for row in rows if row["scaling"] == "none"])
    assert table_of(shown).rows[-1] == ["all", "60.00 (54.00 - 66.00)"]
    (axes,) = figure_of(shown).axes
    (line, _) = axes.lines  # and the trained context
    assert len(line.get_xdata()) == 2


def short(*edges: int, low: float = 0.4, high: float = 2.5) -> dict:
    """Return results of two scalings that agree, with intervals from 30 low to 30 high.

    The model was trained on 8,192 tokens.
    """
    rows = [
        losses(scaling, f"{start} - {stop}", start, stop, 30.0, low=30 * low, high=30 * high)
        for scaling in ("none", "dynamic-yarn")
        for start, stop in itertools.pairwise(edges)
    ]
    return result("perplexity", rows)


def test_the_axis_ends_at_the_last_position_and_wide_intervals_do_not_stretch_it() -> None:
    (axes,) = figure_of(short(0, 512, 1024, 2047)).axes
    assert axes.get_xlim() == (0, 2047)
    assert 18 < axes.get_ylim()[0] < 20 and 45 < axes.get_ylim()[1] < 50
    assert not axes.texts and len(axes.lines) == 2  # the trained context is far away
    (axes,) = figure_of(short(0, 512, 1024, low=0.9, high=1.2)).axes
    assert 24 < axes.get_ylim()[0] < 27 and 36 < axes.get_ylim()[1] < 40


def test_points_in_the_same_place_are_both_visible() -> None:
    (axes,) = figure_of(short(0, 2047)).axes
    first, second = axes.lines
    assert first.get_markersize() > second.get_markersize() and first.get_linewidth() > second.get_linewidth()
    bars = [each for each in axes.collections if isinstance(each, LineCollection)]
    assert [each.get_segments()[0].tolist() for each in bars] == 2 * [[[1023.5, 12], [1023.5, 75]]]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_left_out_of_a_picture(value: float) -> None:
    shown = short(0, 1024, 2047)
    for rows in (shown["rows"][:1], shown["rows"]):
        for row in rows:
            row.update(perplexity=value, low=value, high=value)
        figure_of(shown).draw_without_rendering()


@pytest.mark.parametrize("last", [9000, 16383, 100000])
def test_the_trained_context_is_marked_within_the_frame(last: int) -> None:
    figure = figure_of(short(0, 4096, 8192, last))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    (text,) = axes.texts
    frame, box = axes.get_window_extent(), text.get_window_extent()
    assert frame.x0 < box.x0 and box.x1 < frame.x1 and box.y1 < frame.y1


def test_intervals_of_an_accuracy_are_drawn_from_0_to_100_percent() -> None:
    rows = [
        TASKS["rows"][0] | {"scaling": str(value), "value": value, "low": value - 0.35, "high": value + 0.35}
        for value in (0.0, 0.3, 0.9, 1.5)  # the last is not an accuracy
    ]
    (axes,) = figure_of(result("tasks", rows)).axes
    bars = [each.get_segments()[0] for each in axes.collections]
    ends = [[round(float(x)) for x, _ in each] for each in bars]
    assert ends == [[0, 35], [0, 65], [55, 100], [115, 150]]


def test_a_heat_map_has_lengths_from_left_to_right_and_depths_from_top_to_bottom() -> None:
    lengths, depths = (4096, 8192, 16384), (0.0, 0.5)
    rows = [
        {"scaling": "none", "length": length, "depth": depth, "found": 3 * i + j, "trials": 8}
        for j, length in enumerate(lengths)
        for i, depth in enumerate(depths)
    ]
    (axes,) = figure_of(result("passkey", rows)).axes
    (image,) = axes.images
    assert image.get_array().tolist() == [[0, 1 / 8, 2 / 8], [3 / 8, 4 / 8, 5 / 8]]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["4,096", "8,192", "16,384"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0%", "50%"]
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(x, y): f"{100 * (3 * y + x) / 8:.0f}" for x in range(3) for y in range(2)}


def test_scalings_look_different_and_a_method_keeps_its_colour() -> None:
    names = [
        "none",
        *(f"{m}:{f}" for m in ("linear", "ntk", "by-parts", "yarn") for f in (2, 4)),
        "dynamic-yarn",
    ]
    found = styles(names)
    assert len({tuple(style.values()) for style in found.values()}) == len(names)
    assert found["yarn:2"]["color"] == found["yarn:4"]["color"] == found["dynamic-yarn"]["color"]
    assert len({found[name]["color"] for name in ("none", "linear:2", "ntk:2", "by-parts:2", "yarn:2")}) == 5


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(YarnGGUFError, match=r"report\.html"):
        write_report([Section.of(PASSKEY)], tmp_path / "missing" / "report.html")


def test_a_curve_has_its_points_in_the_middle_of_their_positions() -> None:
    (axes,) = figure_of(POSITIONS).axes
    assert axes.lines[0].get_xdata().tolist() == [4096, 12287.5]


def test_a_sweep_marks_the_least_loss() -> None:
    (axes,) = figure_of(SWEEP).axes
    assert axes.lines[1].get_xdata() == [1.0]


def test_advice_is_drawn_with_its_interval() -> None:
    (axes,) = figure_of(ADVICE).axes
    drawn = [each[2][0].get_segments()[0][:, 0].tolist() for each in axes.containers]
    rows = [row["against_default"] for row in ADVICE["rows"][: len(drawn)]]
    expected = [[100 * math.expm1(row + reach) for reach in (-0.004, 0.004)] for row in rows]
    np.testing.assert_allclose(drawn, expected)
