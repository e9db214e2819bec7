"""Results as pictures: the frontier of quality against cost, call shares, quality by cost weight."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langgraph_router_r1.evaluation.files import replace_file
from langgraph_router_r1.evaluation.report import MICRO, Results, Scores, families, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_plots(results: Results, directory: Path) -> list[Path]:
    """Draw the frontier, the call shares and quality by cost weight; the same results make the same files."""
    plots = {"frontier": _draw_frontier, "shares": _draw_shares}
    if any(row.form for row in results.rows):
        plots = {"forms": _draw_forms, "shares": _draw_shares}
    elif any(len(rows) > 1 for rows in families(results).values()):
        plots["weights"] = _draw_weights
    return [_draw(draw, results, directory / f"{results.name}-{name}.svg") for name, draw in plots.items()]


def _draw(draw: Any, results: Results, path: Path) -> Path:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": results.name, "font.size": 9, "font.family": "sans-serif"}
    with rc_context(settings):
        figure = Figure(figsize=(7.5, 4.6), layout="constrained")
        if draw is _draw_shares:
            figure.set_size_inches(7.5, 1.2 + 0.24 * len(_choosing(results)))
        if draw is _draw_forms:
            figure.set_size_inches(7.5, 1.2 + 0.3 * len({row.form for row in results.rows}))
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, results)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, drawn.getvalue())
    return path


COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#be185d", "#4d7c0f")
GREY = "#6b7280"


def _draw_frontier(axes: Axes, results: Results) -> None:
    several = {family: rows for family, rows in families(results).items() if len(rows) > 1}
    single: dict[tuple[float, float], list[Scores]] = {}
    for row in results.rows:
        if row.family not in several:
            # Rows that made the same choices lie on one another and share a label.
            single.setdefault((float(np.mean(row.costs)), row.estimate(results.metric).mean), []).append(row)
    for (rows, label), colour in zip(
        [
            *((rows, family) for family, rows in several.items()),
            *((rows[:1], " = ".join(short(row.row) for row in rows)) for rows in single.values()),
        ],
        [colour for colour, _ in zip(COLOURS * 3, several, strict=False)] + [GREY] * len(single),
        strict=True,
    ):
        costs = [float(np.mean(row.costs)) * MICRO for row in rows]
        estimates = [row.estimate(results.metric) for row in rows]
        heights = [estimate.mean for estimate in estimates]
        spread = [[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]
        style: dict[str, Any] = {"color": colour, "elinewidth": 0.8, "linewidth": 1.6, "markersize": 5, "alpha": 0.9}
        if colour == GREY:
            axes.errorbar(costs, heights, yerr=spread, marker="s", linestyle="none", **style)
            axes.annotate(
                label, (costs[0], heights[0]), xytext=(6, 3), textcoords="offset points", fontsize=7.5, color="#374151"
            )
        else:
            axes.errorbar(costs, heights, yerr=spread, marker="o", label=label, **style)
    means = [float(np.mean(row.costs)) * MICRO for row in results.rows]
    if any(means):
        # Logarithmic, with room for what costs nothing.
        axes.set_xscale("symlog", linthresh=min(mean for mean in means if mean), linscale=0.3)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(left=min(means) * 0.8)
    axes.set_xlabel("millionths of a dollar a question")
    axes.set_ylabel(f"{results.metric} (bars: 95 % interval)")
    axes.set_title(results.title, loc="left", fontsize=10)
    axes.grid(visible=True, alpha=0.2)
    if several:
        axes.legend(frameon=False, loc="best", fontsize=8)


def _draw_forms(axes: Axes, results: Results) -> None:
    """A dot for each form that the pool was told of in, a line of the plot for each kind of form."""
    forms = list(dict.fromkeys(row.form for row in results.rows))[::-1]
    routers = list(dict.fromkeys((row.family.partition(",")[0], row.cost_weight) for row in results.rows))
    for (family, weight), colour in zip(routers, COLOURS * 3, strict=False):
        rows = [row for row in results.rows if (row.family.partition(",")[0], row.cost_weight) == (family, weight)]
        values = [row.estimate(results.metric).mean for row in rows]
        heights = [forms.index(row.form) for row in rows]
        axes.plot(values, heights, "o", color=colour, alpha=0.6, markersize=5, label=f"{family} {weight:g}")
    axes.set_yticks(range(len(forms)), forms)
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0] - 0.02), right=1.01)
    axes.set_xlabel(f"{results.metric}: a dot for each form of the pool")
    axes.set_title(results.title, loc="left", fontsize=10)
    axes.grid(visible=True, axis="x", alpha=0.2)
    if len(routers) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_shares(axes: Axes, results: Results) -> None:
    models = list(dict.fromkeys(model for row in results.rows for model in row.calls))
    rows = _choosing(results)[::-1]
    totals = np.array([max(1, sum(row.calls.values())) for row in rows])
    left = np.zeros(len(rows))
    for index, model in enumerate(models):
        shares = np.array([row.calls.get(model, 0) for row in rows]) / totals
        colour = COLOURS[index % len(COLOURS)]
        axes.barh([row.row for row in rows], shares, left=left, color=colour, label=short(model), height=0.75)
        left += shares
    axes.set_xlim(0, 1)
    axes.margins(y=0.01)
    axes.set_xlabel("share of the calls")
    axes.legend(frameon=False, fontsize=7.5, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _choosing(results: Results) -> list[Scores]:
    """Return the rows that had a choice: not those of a single model."""
    models = {model for row in results.rows for model in row.calls}
    return [row for row in results.rows if row.row not in models] or list(results.rows)


def _draw_weights(axes: Axes, results: Results) -> None:
    several = {family: rows for family, rows in families(results).items() if len(rows) > 1}
    for (family, rows), colour in zip(several.items(), COLOURS * 3, strict=False):
        weights = [row.cost_weight for row in rows]
        estimates = [row.estimate(results.metric) for row in rows]
        axes.plot(weights, [e.mean for e in estimates], marker="o", color=colour, label=family)
        axes.fill_between(weights, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.08)
    axes.set_xlabel("cost weight")
    axes.set_ylabel(f"{results.metric} (bands: 95 % interval)")
    axes.grid(visible=True, alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
