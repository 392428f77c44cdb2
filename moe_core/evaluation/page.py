"""The report's page. Whatever users wrote (tags, names) is escaped by the template."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from moe_core.settings import Study, dump_study

COLUMNS = (
    ("p_at_1", "P@1"),
    ("p_at_5", "P@5"),
    ("r_at_5", "R@5"),
    ("r_at_10", "R@10"),
    ("cross_entropy", "cross-entropy"),
    ("map", "mAP"),
)

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hardmoe: {{ study.name }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1d2330 }
 h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
 .wide { overflow-x: auto }
 table { border-collapse: collapse; font-variant-numeric: tabular-nums }
 th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #dfe3ea; white-space: nowrap }
 th:first-child, td:first-child { text-align: left }
 small { color: #69707d } tr.published { background: #eaf4ec; font-weight: 600 }
 .expert { display: grid; grid-template-columns: 14rem 1fr; gap: 1rem; padding: .8rem 0;
           border-bottom: 1px solid #dfe3ea }
 .expert img, .plot { max-width: 100%; image-rendering: pixelated }
 .tag { display: inline-block; background: #eef1f6; border-radius: .3rem; padding: 0 .4rem; margin: .1rem }
 .bar { height: .5rem; background: #4d7fb8; border-radius: .25rem }
 pre { background: #f5f6f9; padding: 1rem; overflow-x: auto; font-size: 12px }
</style></head><body>
<h1>hardmoe: {{ study.name }}</h1>
<p>{{ "{:,}".format(posts.read) }} posts read, {{ "{:,}".format(posts.accepted) }} accepted,
{{ "{:,}".format(posts.rejected) }} rejected
{%- if reasons %} ({% for reason, count in reasons.items() %}{{ reason }} {{ count }}{{ ", " if not loop.last }}
{%- endfor %}){% endif %}.
{{ vocabulary.hashtags }} hashtags kept, {{ vocabulary.dropped }} dropped.
{{ partition.experts }} experts on {{ "{:,}".format(partition.training_posts) }} training posts;
the largest cluster is {{ partition.imbalance }} times the mean.</p>

<h2>Held-out posts: the mixture against its controls</h2>
<p>{{ "{:,}".format(table.n) }} test posts; 95 % bootstrap intervals below each figure; mAP over
{{ table.hashtags_in_map }} hashtags and {{ "{:,}".format(table.map_posts) }} posts.
The highlighted row is the published answer, chosen on validation posts.</p>
<div class="wide"><table><tr><th>row</th>{% for _, title in columns %}<th>{{ title }}</th>{% endfor %}
<th>parameters</th><th>used an image</th><th>multiply-adds</th><th>training images</th></tr>
{% for row in table.rows %}<tr{% if row.name == table.published %} class="published"{% endif %}>
<td>{{ row.name }}</td>
{% for name, _ in columns %}<td>{{ "%.3f"|format(row[name]) }}<br><small>{{ "%.3f"|format(row[name ~ "_ci95"][0]) }}
to {{ "%.3f"|format(row[name ~ "_ci95"][1]) }}</small></td>{% endfor %}
<td>{{ "{:,}".format(row.parameters) }}</td><td>{{ "{:,}".format(row.parameters_used) }}</td>
<td>{{ "{:,}".format(row.multiply_adds) }}</td><td>{{ "{:,}".format(row.training_images) }}</td></tr>
{% endfor %}</table></div>

<h2>The experts</h2>
{% for expert in experts %}<div class="expert"><div><b>{{ expert.key }}</b>
{% if not per_expert[expert.key].published %}(the trunk answers here){% endif %}<br>
{{ "{:,}".format(expert.size) }} training posts
<div class="bar" style="width: {{ 100 * expert.size // largest }}%"></div>
{% set on = per_expert[expert.key] %}{% if on.n %}<small>P@1 on its {{ on.n }} test posts:
trunk {{ "%.3f"|format(on.trunk_p_at_1) }}, mixture {{ "%.3f"|format(on.mixture_p_at_1) }}</small>{% endif %}</div>
<div>{% for tag in expert.hashtags %}<span class="tag">{{ tag }}</span>{% endfor %}<br>
<img alt="pictures of {{ expert.key }}" src="data:image/png;base64,{{ expert.sheet }}"></div></div>
{% endfor %}

<h2>Training</h2>
<img class="plot" alt="training loss" src="data:image/png;base64,{{ plot }}">

<h2>Settings</h2>
<pre>{{ settings }}</pre>
</body></html>
"""


def render(
    study: Study,
    table: Mapping[str, Any],
    posts: Mapping[str, int],
    reasons: Mapping[str, int],
    vocabulary: Mapping[str, Any],
    partition: Mapping[str, Any],
    experts: Sequence[Mapping[str, Any]],
    losses: Mapping[str, Sequence[tuple[int, float]]],
) -> str:
    """One HTML page with everything in it; it needs no other file and no network."""
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(TEMPLATE)
    return page.render(
        study=study,
        table=table,
        columns=COLUMNS,
        posts=posts,
        reasons=reasons,
        vocabulary=vocabulary,
        partition=partition,
        experts=experts,
        per_expert={row["expert"]: row for row in table["per_expert"]},
        largest=max(expert["size"] for expert in experts),
        plot=base64.b64encode(_plot(losses)).decode(),
        settings=dump_study(study),
    )


def _plot(losses: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """PNG of the training loss over the images seen, one line a network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, points in losses.items():
        mean = _smooth([loss for _, loss in points])
        width, color = (2.0, "black") if name == "trunk" else (0.9, None)
        axes.plot([images for images, _ in points], mean, label=name, linewidth=width, color=color)
    axes.set_xlabel("images seen")
    axes.set_ylabel("training loss")
    axes.legend(ncols=2, fontsize=7)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _smooth(values: Sequence[float], window: int = 10) -> list[float]:
    """Mean of the last `window` values at each place."""
    return [sum(values[max(0, n - window + 1) : n + 1]) / min(n + 1, window) for n in range(len(values))]
