"""Charts of the report, as SVG in the colours of the page, so that they follow its dark mode.

Each shows by shape, dash or place what it shows by colour, and the page has the table behind each.
"""

import json
import re
from typing import Any

import pandas as pd
import vl_convert

LINE, TEXT, ACCENT, DOUBT = "var(--line)", "var(--text)", "var(--accent)", "var(--doubt)"

CONFIG = {
    "background": None,
    "font": "system-ui, sans-serif",
    # The browser's font may be wider than the one that places were reckoned with.
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
    """A Vega-Lite chart as SVG to put into a page.

    Args:
        name: goes before the ids in it, which must differ from those of the page's other charts.
        tables: its data sets, by name.
    """
    datasets = {key: json.loads(table.to_json(orient="records")) for key, table in tables.items()}
    svg: str = vl_convert.vegalite_to_svg({"datasets": datasets, "config": CONFIG, **specification})
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return svg.replace("url(#", f"url(#{name}-")


def _quantitative(field: str, title: str | None, **more: Any) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title, **more}


def _nominal(field: str, title: str | None = None, **more: Any) -> dict[str, Any]:
    return {"field": field, "type": "nominal", "title": title, "sort": None, **more}


SHARE = {"domain": [0, 1]}


def f1_chart(table: pd.DataFrame) -> str:
    """F1 with its interval, a line a class: name, f1, low, high."""
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
    """Loss by epoch, a panel a fold, a rule at the epoch kept.

    Args:
        curves: fold, epoch, curve ("training" or "validation"), loss.
        kept: fold, epoch.
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


def calibration_chart(table: pd.DataFrame) -> str:
    """Accuracy by confidence, as bars beside the line on which both are the same.

    Args:
        table: as `scoring.calibration` gives it: low, high, photos, confidence, accuracy.
    """
    sure, right = "how sure the networks are", "share that is right"
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
                        "x": _quantitative("low", sure, scale=SHARE),
                        "x2": {"field": "high"},
                        "y": _quantitative("accuracy", right, scale=SHARE),
                        "y2": {"datum": 0},
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "color": TEXT, "size": 50},
                    "encoding": {
                        "x": _quantitative("confidence", sure),
                        "y": _quantitative("accuracy", right),
                    },
                },
                {
                    "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
                    "mark": {"type": "line", "color": TEXT, "strokeDash": [5, 4]},
                    "encoding": {"x": _quantitative("x", sure), "y": _quantitative("y", right)},
                },
            ],
        },
        bins=table,
    )


def age_chart(table: pd.DataFrame) -> str:
    """Share of wrong age groups by the distance of the age from an edge, a panel an edge.

    Args:
        table: edge, years, order, wrong (share), low, high.
    """
    years = _nominal("years", "years from the edge", axis={"labelAngle": 0})
    years["sort"] = {"field": "order"}
    wrong = "share that is wrong"
    return draw(
        "ages",
        {
            "data": {"name": "ages"},
            "facet": {"field": "edge", "type": "ordinal", "title": "nearest edge, in years of age"},
            "spec": {
                "width": {"step": 56},
                "height": 190,
                "encoding": {"x": years},
                "layer": [
                    {
                        "mark": {"type": "bar", "color": ACCENT, "opacity": 0.55},
                        "encoding": {"y": _quantitative("wrong", wrong)},
                    },
                    {
                        "mark": {"type": "rule", "color": TEXT},
                        "encoding": {
                            "y": _quantitative("low", wrong),
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
    """Macro F1 on the photos trained on against the held-out ones: fold, part, macro_f1."""
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
