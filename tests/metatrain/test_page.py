from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ghn_fast.metatrain.page import Point, svg_curve, thin, write_report


def lines(path: Path, values: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(v) + "\n" for v in values))


def test_page_has_everything_and_needs_nothing(tmp_path: Path) -> None:
    steps = [
        {"step": k, "loss": None if k == 3 else 2.3 / k, "top1": k, "lr": 0.1, "seconds": 2.0}
        for k in range(1, 1001)
    ]
    lines(tmp_path / "metrics.jsonl", steps)
    lines(tmp_path / "evaluations.jsonl", [{"step": 500, "top1": 61.25, "best": 70.5}])
    skipped = [{"step": 3, "name": "train-<7>", "reason": "the loss is not finite"}]
    lines(tmp_path / "skipped.jsonl", skipped)
    (tmp_path / "train.json").write_text(json.dumps({"hid": 32, "steps": 2000, "dataset": "a<b"}))
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = path.read_text()
    parser = Links()
    parser.feed(page)
    assert not parser.links
    assert parser.drawings == 6
    for text in ("1,000 of 2,000", "61.25", "train-&lt;7&gt;", "the loss is not finite", "a&lt;b"):
        assert text in page
    assert "<7>" not in page


class Links(HTMLParser):
    """Counts drawings and collects what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.drawings = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        self.drawings += tag == "svg"


def test_run_without_steps_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no metrics\.jsonl"):
        write_report(tmp_path)


def test_curve_passes_through_its_points() -> None:
    root = ET.fromstring(svg_curve([Point(0, 1.0), Point(5, math.nan), Point(10, 3.0)], dots=True))
    space = "{http://www.w3.org/2000/svg}"
    dots = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{space}circle")]
    assert len(dots) == 2
    assert dots[0][0] < dots[1][0]
    # Upwards is towards smaller y.
    assert dots[0][1] > dots[1][1]
    assert len(list(root.iter(f"{space}polyline"))) == 2
    assert svg_curve([Point(1, math.nan)]) == "<p>no finite values</p>"


def test_thinning_takes_medians() -> None:
    points = [Point(k, 1000.0 if k == 4 else float(k)) for k in range(9)]
    assert thin(points, 3) == [Point(1, 1), Point(4, 5), Point(7, 7)]
    assert thin(points, 9) == points
