"""Runs: the curves of training runs, from what lies beside their weights."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st
from widgets import still_there

from tokenstats.inspect.runs import Curve, curves_of, find_runs
from tokenstats.store import Store

_UNITS = {"loss": "loss, nats a token", "grad_norm": "norm of the gradient", "learning_rate": "learning rate"}


def page(store: Store, scoring: str | None) -> None:
    """One measure of some runs by step."""
    beside = str(store.path.resolve().parent)
    place = st.text_input("Folder of a run, or of several", beside, key="runs_folder", bind="query-params")
    folder = Path(place.strip()).expanduser()
    runs = {str(path.relative_to(folder)): path for path in find_runs(folder)} if folder.is_dir() else {}
    if not runs:
        st.info("No run there: `tokenstats train` writes `history.json` beside the weights in the folder that --out names.")
        return
    chosen = st.multiselect("Runs", list(runs), list(runs)[:4], key="runs")
    curves = {name: curves_of(runs[name]) for name in chosen}
    measures = list(dict.fromkeys(curve.measure for of_run in curves.values() for curve in of_run))
    if not measures:
        st.info("Nothing is told of these runs.")
        return
    still_there("measure", measures, "measure")
    measure = st.selectbox("Measure", measures, format_func=lambda name: _UNITS.get(name, name), key="measure")
    lines = {
        f"{curve.phase}: {name}".removesuffix(": ."): curve
        for name, of_run in curves.items()
        for curve in of_run
        if curve.measure == measure
    }
    table = _table(lines)
    _draw(table, _UNITS.get(measure, measure))
    with st.expander("Numbers"):
        st.dataframe(table)


def _draw(table: pd.DataFrame, title: str) -> None:
    """The lines, with their names below each other under them: a phone has no room for a list beside the picture."""
    points = table.reset_index().melt("step", var_name="run", value_name="value").dropna()
    legend = {"title": None, "orient": "bottom", "direction": "vertical", "labelLimit": 0}
    encoding = {
        "x": {"field": "step", "type": "quantitative"},
        "y": {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": False}},
        "color": {"field": "run", "type": "nominal", "legend": legend},
        "strokeDash": {"field": "run", "type": "nominal", "legend": legend},
    }
    mark = {"type": "line", "point": len(points) < 50, "tooltip": True}
    st.vega_lite_chart(points, {"mark": mark, "encoding": encoding, "height": 380}, width="stretch")


def _table(lines: dict[str, Curve]) -> pd.DataFrame:
    """A column a line, a line a step."""
    columns: Sequence[pd.Series] = [pd.Series(dict(curve.points), name=name, dtype=float) for name, curve in lines.items()]
    return pd.concat(columns, axis=1).sort_index().rename_axis("step")
