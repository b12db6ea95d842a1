"""Vega-Lite charts for the report and the sweep.

The report's charts are SVG in the CSS colours of the page, so they follow its dark mode. Colour is
never the only cue: shape, dash or position repeats it.
"""

import json
import re
import textwrap
from typing import Any

import pandas as pd
import vl_convert

LINE, TEXT, ACCENT, DOUBT = "var(--line)", "var(--text)", "var(--accent)", "var(--doubt)"

CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    # Room for a browser font that is wider than the one used for the layout.
    "padding": {"left": 34, "right": 12, "top": 5, "bottom": 5},
    "view": {"stroke": None},
    "axis": {
        "labelColor": TEXT, "titleColor": TEXT, "gridColor": LINE, "domainColor": LINE,
        "tickColor": LINE, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
        "labelLimit": 260, "labelFlush": False,
    },
    "legend": {"labelColor": TEXT, "titleColor": TEXT, "labelFontSize": 12, "orient": "top"},
    "header": {"labelColor": TEXT, "titleColor": TEXT, "labelFontSize": 12, "titleFontSize": 12},
    "text": {"color": TEXT},
}  # fmt: skip


def draw(name: str, specification: dict[str, Any], **tables: pd.DataFrame) -> str:
    """Render a Vega-Lite chart as SVG for a page.

    Args:
        name: prefix of the ids in the SVG, unique on the page.
        tables: data sets by name.
    """
    datasets = {key: json.loads(table.to_json(orient="records")) for key, table in tables.items()}
    svg: str = vl_convert.vegalite_to_svg({"datasets": datasets, "config": CONFIG, **specification})
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return svg.replace("url(#", f"url(#{name}-")


def _quantitative(field: str, title: str | None, **options: Any) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title, **options}


def _nominal(field: str, title: str | None = None, **options: Any) -> dict[str, Any]:
    return {"field": field, "type": "nominal", "title": title, "sort": None, **options}


SHARE = {"domain": [0, 1]}


def f1_chart(table: pd.DataFrame) -> str:
    """F1 of each class with its interval.

    Args:
        table: name, f1, low, high.
    """
    f1 = {"scale": SHARE, "axis": {"orient": "top"}}
    return draw(
        "f1",
        {
            "data": {"name": "classes"},
            "width": 420,
            "height": {"step": 22},
            "encoding": {"y": _nominal("name")},
            "layer": [
                {
                    "mark": {"type": "rule", "color": ACCENT, "strokeWidth": 2},
                    "encoding": {
                        "x": _quantitative("low", "F1 (95%)", **f1),
                        "x2": {"field": "high"},
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "color": TEXT, "size": 60},
                    "encoding": {"x": _quantitative("f1", "F1 (95%)", **f1)},
                },
            ],
        },
        classes=table,
    )


def learning_chart(curves: pd.DataFrame, kept: pd.DataFrame) -> str:
    """Loss by epoch, one panel per fold, with a rule at the kept epoch.

    Args:
        curves: fold, epoch, curve ("training" or "validation"), loss.
        kept: fold, epoch (the kept one).
    """
    epoch = {"type": "quantitative", "title": "epoch", "axis": {"tickMinStep": 1, "format": "d"}}
    strokes = {"symbolType": "stroke", "symbolSize": 400, "symbolStrokeWidth": 2}
    return draw(
        "curves",
        {
            "data": {"name": "curves"},
            "transform": [
                {
                    "lookup": "fold",
                    "from": {"data": {"name": "kept"}, "key": "fold", "fields": ["kept"]},
                }
            ],
            "facet": {"field": "fold", "type": "ordinal", "title": "fold"},
            "columns": 5,
            "spec": {
                "width": 150,
                "height": 150,
                "layer": [
                    {
                        "mark": {"type": "line", "point": {"size": 26, "filled": True}},
                        "encoding": {
                            "x": {**epoch, "field": "epoch"},
                            "y": _quantitative(
                                "loss", "loss", scale={"type": "log", "nice": False}
                            ),
                            "color": _nominal(
                                "curve", scale={"range": [ACCENT, DOUBT]}, legend=strokes
                            ),
                            "strokeDash": _nominal("curve", legend=strokes),
                        },
                    },
                    {
                        "mark": {"type": "rule", "color": TEXT, "strokeDash": [2, 3]},
                        "encoding": {"x": {**epoch, "field": "kept", "aggregate": "max"}},
                    },
                ],
            },
        },
        curves=curves,
        kept=kept.rename(columns={"epoch": "kept"}),
    )


def calibration_chart(table: pd.DataFrame, before: pd.DataFrame) -> str:
    """Reliability diagram: accuracy by confidence, and the diagonal on which both are equal.

    Args:
        table: low, high, photos, confidence, accuracy, from `calibration_table`.
        before: the same before calibration, as open diamonds.
    """
    x, y = "confidence", "accuracy"
    return draw(
        "calibration",
        {
            "data": {"name": "bins"},
            "width": 320,
            "height": 320,
            "layer": [
                {
                    "mark": {"type": "rect", "color": ACCENT, "opacity": 0.55, "stroke": ACCENT},
                    "encoding": {
                        "x": _quantitative("low", x, scale=SHARE),
                        "x2": {"field": "high"},
                        "y": _quantitative("accuracy", y, scale=SHARE),
                        "y2": {"datum": 0},
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "color": TEXT, "size": 50},
                    "encoding": {
                        "x": _quantitative("confidence", x),
                        "y": _quantitative("accuracy", y),
                    },
                },
                {
                    "data": {"name": "before"},
                    "mark": {"type": "point", "shape": "diamond", "color": DOUBT, "size": 70},
                    "encoding": {
                        "x": _quantitative("confidence", x),
                        "y": _quantitative("accuracy", y),
                    },
                },
                {
                    "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
                    "mark": {"type": "line", "color": TEXT, "strokeDash": [5, 4]},
                    "encoding": {"x": _quantitative("x", x), "y": _quantitative("y", y)},
                },
            ],
        },
        bins=table,
        before=before,
    )


def age_chart(table: pd.DataFrame) -> str:
    """Error rate of the age group by distance from the nearest edge, one panel per edge.

    Args:
        table: edge, years, order, wrong (error rate), low, high.
    """
    years = _nominal("years", "years from the edge", axis={"labelAngle": 0})
    years["sort"] = {"field": "order"}
    error_rate = "error rate"
    return draw(
        "ages",
        {
            "data": {"name": "ages"},
            "facet": {"field": "edge", "type": "ordinal", "title": "nearest edge (age in years)"},
            "spec": {
                "width": {"step": 56},
                "height": 190,
                "encoding": {"x": years},
                "layer": [
                    {
                        "mark": {"type": "bar", "color": ACCENT, "opacity": 0.55},
                        "encoding": {"y": _quantitative("wrong", error_rate)},
                    },
                    {
                        "mark": {"type": "rule", "color": TEXT},
                        "encoding": {
                            "y": _quantitative("low", error_rate),
                            "y2": {"field": "high"},
                        },
                    },
                ],
            },
            "resolve": {"scale": {"x": "independent"}},
        },
        ages=table,
    )


def fit_chart(table: pd.DataFrame) -> str:
    """Macro F1 on training and on held-out photos, one row per fold.

    Args:
        table: fold, part ("training" or "held out"), macro_f1.
    """
    part = _nominal("part", scale={"range": [DOUBT, ACCENT]})
    return draw(
        "fit",
        {
            "data": {"name": "folds"},
            "width": 420,
            "height": {"step": 26},
            "encoding": {"y": {"field": "fold", "type": "ordinal", "title": "fold"}},
            "layer": [
                {
                    "mark": {"type": "line", "color": LINE, "strokeWidth": 3},
                    "encoding": {
                        "x": _quantitative("macro_f1", "macro F1", scale=SHARE),
                        "detail": {"field": "fold"},
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                    "encoding": {
                        "x": _quantitative("macro_f1", "macro F1", scale=SHARE),
                        "color": part,
                        "shape": _nominal("part"),
                    },
                },
            ],
        },
        folds=table,
    )


def sweep_chart(table: pd.DataFrame, note: str) -> dict[str, Any]:
    """Vega-Lite specification: macro F1 with its interval, and training time, a line per run.

    Args:
        table: run, macro_f1, low, high, seconds; in the order of the chart.
        note: a paragraph above the chart.
    """
    # One domain for both panels: a run without a time keeps its line.
    run = _nominal("run", scale={"domain": table["run"].to_list()})
    score = {"scale": {"zero": False}}
    return {
        "data": {"values": json.loads(table.to_json(orient="records"))},
        "title": {"text": textwrap.wrap(note, 110), "fontWeight": "normal", "anchor": "start"},
        "config": {
            "font": "sans-serif",
            "background": "white",
            "axis": {"labelLimit": 400, "titleFontWeight": "normal"},
        },
        "hconcat": [
            {
                "width": 360,
                "height": {"step": 26},
                "encoding": {"y": run},
                "layer": [
                    {
                        "mark": {"type": "rule", "strokeWidth": 2},
                        "encoding": {
                            "x": _quantitative("low", "macro F1 (95%)", **score),
                            "x2": {"field": "high"},
                        },
                    },
                    {
                        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                        "encoding": {"x": _quantitative("macro_f1", "macro F1 (95%)", **score)},
                    },
                ],
            },
            {
                "width": 200,
                "height": {"step": 26},
                "mark": {"type": "bar", "height": 14},
                "encoding": {
                    "y": {**run, "axis": {"labels": False, "ticks": False}},
                    "x": _quantitative("seconds", "training time (s)"),
                },
            },
        ],
    }


def to_png(specification: dict[str, Any]) -> bytes:
    """Render a Vega-Lite chart as PNG."""
    png: bytes = vl_convert.vegalite_to_png(specification, scale=2)
    return png


def to_html(specification: dict[str, Any]) -> bytes:
    """Render a Vega-Lite chart as an HTML page that opens from disk, offline."""
    page: str = vl_convert.vegalite_to_html(specification, bundle=True)
    return page.encode()
