"""The report's page. Whatever users wrote (tags, names) is escaped by the template, and the page forbids scripts and
requests to the browser that shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_core.evaluation.comparison import compare
from moe_core.evaluation.plots import BLUE, ORANGE, Line, around, bars, intervals, lines, short, sparkline
from moe_core.settings import Study, dump_study
from moe_core.text import shown

COLUMNS = (
    ("p_at_1", "P@1"),
    ("p_at_5", "P@5"),
    ("r_at_5", "R@5"),
    ("r_at_10", "R@10"),
    ("cross_entropy", "cross-entropy"),
    ("map", "mAP"),
)
FIGURES = ("trunk", "trunk_same_budget", "dense_same_cost", "random_partition")  # gains over them, in large
SIZES_OF = 40  # experts at most in the plot of sizes
SMOOTH = 10  # measurements whose mean is a point of a loss curve

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hardmoe: {{ study.name }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
 :root { color-scheme: light dark; --page: #fdfdfc; --ink: #1f2328; --soft: #656d76; --line: #d9dde2;
         --tint: #f1f3f5; --mark: #e6f3ea; --up: #2b7d4f; --down: #b23f39; --bar: #3f7fbf }
 @media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --ink: #e4e7ea; --soft: #98a1ab; --line: #31373e; --tint: #1f2429; --mark: #1b3325;
          --up: #62bb87; --down: #e5827c; --bar: #5b97d1 } }
 * { box-sizing: border-box }
 body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; margin: 0 auto; max-width: 70rem;
        padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--page); overflow-wrap: anywhere;
        -webkit-text-size-adjust: 100% }
 h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em }
 h2 { font-size: 1.2rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line) }
 h3 { font-size: 1rem; margin: 0 }
 p { margin: .3rem 0 1rem; max-width: 44rem } p, .soft, figcaption, small { color: var(--soft) }
 small, figcaption { font-size: .82rem } figure { margin: 0 0 1.2rem }
 svg, img { max-width: 100%; height: auto; display: block }
 .figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 }
 .figure { background: var(--tint); border-radius: .6rem; padding: .75rem .9rem }
 .figure b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums }
 .figure small { display: block; line-height: 1.35 }
 .wide { overflow-x: auto; -webkit-overflow-scrolling: touch }
 .pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.25rem 2.5rem }
 .pair > figure > svg { width: 100% }
 table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100% }
 th, td { padding: .35rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
 th { font-weight: 500; color: var(--soft) } td small { display: block }
 th:first-child, td:first-child { text-align: left; padding-left: .4rem }
 tr.published td { background: var(--mark); font-weight: 600 } tr.published small { font-weight: 400 }
 .up { color: var(--up) } .down { color: var(--down) }
 td svg { display: inline-block; vertical-align: middle } .expert figure { margin: 0 }
 #costs { font-size: .8rem; margin-bottom: 1.5rem }
 #costs th, #costs td { padding: .18rem .4rem } #costs th { line-height: 1.2 }
 .expert { border: 1px solid var(--line); border-radius: .7rem; padding: 1rem; margin: 1rem 0 }
 .expert header { display: flex; flex-wrap: wrap; gap: .1rem 1rem; align-items: baseline; margin-bottom: .6rem }
 .expert figure img { width: 24rem; border-radius: .35rem }
 .tags { margin: .5rem 0 .9rem; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .35rem }
 .tags li { background: var(--tint); border-radius: 1rem; padding: .05rem .65rem; font-size: .9rem; max-width: 100% }
 details { margin: .6rem 0 } summary { cursor: pointer; padding: .3rem 0 }
 code, pre { font: .8rem/1.5 ui-monospace, Menlo, Consolas, monospace }
 pre { background: var(--tint); padding: 1rem; border-radius: .6rem; overflow-x: auto; overflow-wrap: normal }
 @media (max-width: 34rem) { body { padding: 1.25rem 1rem 3rem } .expert { padding: .8rem } h1 { font-size: 1.45rem } }
</style></head><body>
{% macro interval(pair) %}{{ "%.3f"|format(pair[0]) }} to {{ "%.3f"|format(pair[1]) }}{% endmacro %}
{% macro gain(value, pair) -%}
<span class="{{ "up" if pair[0] > 0 else "down" if pair[1] < 0 else "" }}">{{ value|signed }}</span>
{%- endmacro %}
{% macro moved(title, tags) %}{% if tags %}<small>{{ title }}</small><ul class="tags">
{% for tag in tags %}<li>{{ tag.tag|shown }} <small>{{ tag.trunk }} → {{ tag.mixture }} of {{ tag.n }}</small></li>
{% endfor %}</ul>{% endif %}{% endmacro %}
<h1>{{ study.name }}</h1>
{% if not partition %}<p>The last comparison table of this study
{%- if since %}, which has changed since: {{ since|join("; ")|shown(4000) }}{% endif %}.</p>
{% else %}<p>A hard mixture of {{ partition.experts }} experts on {{ "{:,}".format(posts.accepted) }} posts with
{{ "{:,}".format(vocabulary.hashtags) }} hashtags, against its controls on {{ "{:,}".format(table.n) }} held-out
posts.</p>{% endif %}

<div class="figures">
<div class="figure"><small>P@1 of<br>{{ table.published }}</small><b>{{ "%.3f"|format(best.p_at_1) }}</b>
<small>95 %: {{ interval(best.p_at_1_ci95) }}</small></div>
{% for name in figures if name in table.published_gains %}
{% set pair = table.published_gains[name] %}
<div class="figure"><small>its gain over<br>{{ name }}</small><b>{{ gain(pair.p_at_1_gain, pair.p_at_1_gain_ci95) }}</b>
<small>95 %: {{ pair.p_at_1_gain_ci95[0]|signed }} to {{ pair.p_at_1_gain_ci95[1]|signed }}</small></div>
{% endfor %}
{% if spending %}<div class="figure"><small>training<br>of all networks</small><b>{{ seconds|duration }}</b>
<small>{{ "{:,}".format(images) }} images</small></div>{% endif %}
</div>

<section id="verdict"><h2>Verdict</h2>
<p>By {{ verdict.title }} on {{ "{:,}".format(table.n) }} held-out posts; intervals are 95 % bootstraps of the
difference on the same posts.</p>
<ul>{% for each in verdict.compared %}<li>{{ each.text }}</li>
{% endfor %}<li>Worth its cost: {{ verdict.answer }}: {{ verdict.why }}</li></ul>
{% if table.warnings %}<p>Warnings:</p>
<ul>{% for line in table.warnings %}<li>{{ line|shown }}</li>
{% endfor %}</ul>{% endif %}</section>

<h2>The mixture against its controls</h2>
<p>The highlighted row is the published answer, chosen on validation posts. Intervals are 95 % bootstraps over posts;
a gain is colored where its interval excludes zero; most_frequent answers every image with the most frequent training
hashtags; mAP is over
{{ "{:,}".format(table.hashtags_in_map) }} hashtags and {{ "{:,}".format(table.map_posts) }} posts.</p>
<div class="pair"><figure>{{ comparison }}<figcaption>P@1 with its 95 % interval</figcaption></figure>
<div class="wide" tabindex="0"><table id="costs"><tr><th>what it costs</th><th>parameters</th><th>used an<br>image</th>
<th>multiply-adds<br>an image</th><th>images<br>trained on</th></tr>
{% for row in table.rows %}<tr><td>{{ row.name }}</td>
{% for name in ("parameters", "parameters_used", "multiply_adds", "training_images") %}
<td title="{{ "{:,}".format(row[name]) }}">{{ row[name]|short }}</td>{% endfor %}</tr>
{% endfor %}</table></div></div>
<div class="wide" tabindex="0"><table id="comparison"><tr><th>row</th>{% for _, title in columns %}<th>{{ title }}</th>
{% endfor %}</tr>
{% for row in table.rows %}<tr{% if row.name == table.published %} class="published"{% endif %}><td>{{ row.name }}</td>
{% for name, _ in columns %}<td>{{ "%.3f"|format(row[name]) }}<small>{{ interval(row[name ~ "_ci95"]) }}</small></td>
{% endfor %}</tr>
{% endfor %}</table></div>
<h3>What the published row gains, on the same posts</h3>
<div class="wide" tabindex="0" style="max-width: 40rem"><table id="against"><tr><th>over</th>
{% for _, title in paired %}<th>{{ title }}</th>{% endfor %}</tr>
{% for name, pair in table.published_gains.items() %}<tr><td>{{ name }}</td>
{% for measure, _ in paired %}{% set around = pair[measure ~ "_gain_ci95"] %}
<td>{{ gain(pair[measure ~ "_gain"], around) }}<small>{{ around[0]|signed }} to {{ around[1]|signed }}</small></td>
{% endfor %}</tr>
{% endfor %}</table></div>

{% if partition %}<h2>Training</h2>
<div class="pair"><figure>{{ loss }}<figcaption>Loss over images seen, mean of up to {{ smooth }} measurements
</figcaption></figure>
<figure>{{ rate }}<figcaption>Learning rate over images seen</figcaption></figure></div>
<div class="wide" tabindex="0" style="max-width: 40rem"><table id="spending"><tr><th>trained so far</th>
<th>networks</th><th>images</th><th>time</th></tr>
{% for one in spending %}<tr><td>{{ one.asset }}</td><td>{{ one.networks }}</td>
<td>{{ "{:,}".format(one.training_images) }}</td><td>{{ one.seconds|duration }}</td></tr>{% endfor %}
<tr><td>all</td><td></td><td>{{ "{:,}".format(images) }}</td><td>{{ seconds|duration }}</td></tr></table></div>

<h2>The experts</h2>
<p>Training posts of the largest cluster: {{ partition.imbalance }} times the mean. P@1 is on the test posts that are
routed to the expert; each gain with its 95 % interval.</p>
{% if sizes %}<figure style="max-width: 40rem">{{ sizes }}<figcaption>Training posts of each expert</figcaption>
</figure>{% endif %}
<div class="wide" tabindex="0"><table id="experts"><tr><th>expert</th><th>training posts</th><th>test posts</th>
<th>trunk</th><th>mixture</th><th>gain</th><th>loss</th></tr>
{% for expert in experts %}<tr><td>{{ expert.key }}
{%- if not expert.published %}<small>the trunk answers</small>{% endif %}</td>
<td>{{ "{:,}".format(expert.size) }}</td><td>{{ "{:,}".format(expert.n) }}</td>
{% if expert.n %}<td>{{ "%.3f"|format(expert.trunk_p_at_1) }}</td><td>{{ "%.3f"|format(expert.mixture_p_at_1) }}</td>
<td>{{ gain(expert.p_at_1_gain, expert.p_at_1_gain_ci95) }}
<small>{{ expert.p_at_1_gain_ci95[0]|signed }} to {{ expert.p_at_1_gain_ci95[1]|signed }}</small></td>
{% else %}<td></td><td></td><td></td>{% endif %}
<td>{{ sparks[expert.key] }}</td></tr>
{% endfor %}</table></div>

<h2>What each expert sees</h2>
<p>First the hashtags that set its cluster apart, with how many times their share among all posts they have there.
Then those that trunk and mixture find differently often: a tag of a test post is found when it is among the first five
of the answer. They are the largest of many differences, so partly chance. Typical posts lie nearest to the cluster's
centroid; ambiguous ones were nearly given to another expert.</p>
{% for expert in experts %}<section class="expert" id="{{ expert.key }}"><header><h3>{{ expert.key }}</h3>
<small>{{ "{:,}".format(expert.size) }} training posts{% if expert.n %}, P@1 gain
{{ gain(expert.p_at_1_gain, expert.p_at_1_gain_ci95) }} on {{ "{:,}".format(expert.n) }} test posts{% endif %}
{%- if not expert.published %}; the trunk answers here{% endif %}</small></header>
<ul class="tags">{% for tag, count, times in expert.hashtags %}
<li>{{ tag|shown }} <small>×{{ times }}</small></li>{% endfor %}</ul>
{% if expert.n %}{{ moved("Found more often than by the trunk", expert.lifted) }}
{{ moved("Found less often", expert.lowered) }}{% endif %}
<div class="pair">{% for name, sheet in expert.sheets.items() %}
<figure><img alt="{{ name }} posts of {{ expert.key }}" src="data:image/webp;base64,{{ sheet }}">
<figcaption>{{ name }}</figcaption></figure>{% endfor %}</div></section>
{% endfor %}

<h2>Posts and hashtags</h2>
<p>{{ "{:,}".format(posts.read) }} posts read: {{ "{:,}".format(posts.accepted) }} accepted,
{{ "{:,}".format(posts.rejected) }} rejected. {{ "{:,}".format(vocabulary.hashtags) }} hashtags kept,
{{ "{:,}".format(vocabulary.dropped) }} dropped.</p>
<div class="pair"><div class="wide"><table id="rejects"><tr><th>rejected because</th><th>posts</th></tr>
{% for reason, count in reasons.items() %}<tr><td>{{ reason }}</td><td>{{ "{:,}".format(count) }}</td></tr>
{% else %}<tr><td>none</td><td>0</td></tr>{% endfor %}</table></div>
<div class="wide"><table id="dropped"><tr><th>hashtags dropped because</th><th>hashtags</th></tr>
{% for reason, count in vocabulary.dropped_by_reason.items() %}<tr><td>{{ reason }}</td>
<td>{{ "{:,}".format(count) }}</td></tr>{% else %}<tr><td>none</td><td>0</td></tr>{% endfor %}</table></div></div>

<h2>How it came to be</h2>
<details><summary>Versions of the {{ lineage|length }} artifacts that this page is made from</summary>
<div class="wide"><table id="lineage"><tr><th>artifact</th><th>version</th><th>digest of its content</th></tr>
{% for name, version, digest in lineage %}<tr><td>{{ name }}</td><td><code>{{ version }}</code></td>
<td><code>{{ digest }}</code></td></tr>
{% endfor %}</table></div></details>
<details><summary>Settings: study.toml</summary><pre>{{ settings }}</pre></details>{% endif %}
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
    logs: Mapping[str, Sequence[Mapping[str, float]]],
    lineage: Sequence[tuple[str, str, str]],
    spending: Sequence[Any],
) -> str:
    """One HTML page with everything in it; it needs no other file and no network. `logs`: of the trunk and experts."""
    from markupsafe import Markup

    losses = {name: smoothed([(line["images_seen"], line["loss"]) for line in log]) for name, log in logs.items()}
    rates = {name: [(line["images_seen"], line["lr"]) for line in log] for name, log in logs.items()}
    sizes = bars([(e["key"], e["size"]) for e in experts], "training posts") if len(experts) <= SIZES_OF else ""
    return _template().render(
        **_of_table(study, table),
        posts=posts,
        reasons=reasons,
        vocabulary=vocabulary,
        partition=partition,
        experts=experts,
        loss=Markup(lines(_curves(losses), "images seen", "loss")),
        rate=Markup(lines(_curves(rates), "images seen", "learning rate")),
        sizes=Markup(sizes),
        sparks={e["key"]: Markup(sparkline(losses[e["key"]], f"loss of {e['key']}")) for e in experts},
        smooth=SMOOTH,
        spending=spending,
        seconds=sum(one.seconds for one in spending),
        images=sum(one.training_images for one in spending),
        lineage=lineage,
        settings=dump_study(study),
    )


def render_table(study: Study, table: Mapping[str, Any], since: Sequence[str] = ()) -> str:
    """A page of the table and its verdict alone; `since`: what changed in the study after it was made."""
    return _template().render(**_of_table(study, table), partition=None, spending=(), since=since)


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"shown": shown, "duration": duration, "signed": signed, "short": short}
    return environment.from_string(TEMPLATE)


def _of_table(study: Study, table: Mapping[str, Any]) -> dict[str, Any]:
    """What the part of the page about the table needs."""
    from markupsafe import Markup

    rows, pairs = table["rows"], table["published_gains"].values()
    measured = [(r["name"], *around(r["p_at_1_ci95"], r["p_at_1"]), r["name"] == table["published"]) for r in rows]
    return {
        "study": study,
        "table": {"warnings": [], **table},
        "verdict": compare(table),
        "best": next(row for row in rows if row["name"] == table["published"]),
        "columns": COLUMNS,
        "figures": FIGURES,
        "paired": [(name, title) for name, title in COLUMNS if any(f"{name}_gain" in pair for pair in pairs)],
        "comparison": Markup(intervals(measured, "P@1 of each row")),
    }


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each y becomes the mean of the last SMOOTH ones."""
    values = [y for _, y in points]
    return [(x, sum(values[max(0, n - SMOOTH + 1) : n + 1]) / min(n + 1, SMOOTH)) for n, (x, _) in enumerate(points)]


def signed(value: float) -> str:
    """+0.045 or −0.080."""
    return f"{value:+.3f}".replace("-", "−")


def duration(seconds: float) -> str:
    """42 s, 12 min, 3.5 h, 2.1 days."""
    for size, unit, least in ((86400, "days", 2), (3600, "h", 1), (60, "min", 2)):
        if seconds >= size * least:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def _curves(points: Mapping[str, Sequence[tuple[float, float]]]) -> list[Line]:
    """The experts' beneath, all in one color, the trunk's on top."""
    experts = [Line("experts", found, BLUE, 1.2, 0.55) for name, found in points.items() if name != "trunk"]
    return [*experts, Line("trunk", points["trunk"], ORANGE, 2.2)]
