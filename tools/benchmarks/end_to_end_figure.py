"""The figure of `end_to_end.py`: how many times the plain network fits."""

COLORS = {
    "keras.remat": "#bbbbbb",
    "PyTorch": "#777777",
    "Recompute": "#8fc1e3",
    "reversible": "#3a7ca5",
    "reversible, MicroAdam": "#16425b",
}
MEASURES = {"deepest": "depth", "largest": "parameters"}


def draw(found, path):
    """Write a PNG of the rows that `end_to_end` has found."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((r["network"], r["goal"]) for r in found))
    figure = Figure(figsize=(10, 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False).flat
    for ax, (network, goal) in zip(axes, panels):
        rows = [
            r for r in found if (r["network"], r["goal"]) == (network, goal)
        ]
        _draw_panel(ax, rows, MEASURES[goal])
        ax.set_title(f"{network}: {MEASURES[goal]}, times the plain network's")
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    figure.legend(
        unique.values(), unique, loc="outside lower center", ncols=len(unique)
    )
    figure.savefig(path, dpi=100)


def _draw_panel(ax, rows, measure):
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    height = 0.8 / len(COLORS)
    for row in rows:
        name = row["contender"]
        if name == "plain" or "fails" in row:
            continue
        plain = next(
            r
            for r in rows
            if (r["backend"], r["contender"]) == (row["backend"], "plain")
        )
        times = row[measure] / plain[measure]
        place = backends.index(row["backend"]) + height * (
            list(COLORS).index(name) - len(COLORS) / 2
        )
        ax.barh(place, times, height, color=COLORS[name], label=name)
        label = f"{times:.1f}{' or more' if row['at limit'] else ''}"
        ax.text(times, place, f" {label}", va="center", fontsize=8)
    ax.axvline(1, color="black", linewidth=1)
    ax.set_yticks(range(len(backends)), backends)
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
