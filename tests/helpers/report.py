"""A report's page of made-up figures, with any hashtags."""

import base64
from html.parser import HTMLParser

from moe_core.evaluation import page
from moe_core.evaluation.bands import BANDS
from moe_core.evaluation.hashtag_table import BAND_MEASURES
from moe_core.evaluation.measures import MEASURES, PAIRED
from moe_core.recipes import demo
from moe_core.stages.training.cost import TrainingCost

WICKED = ['<img src=x onerror="alert(1)">', "](javascript:alert(2))", "</pre><script>alert(3)</script>", "{{ 7 * 7 }}"]


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words += data


def bands():
    """A head that was measured, a tail without test posts, no middle."""
    known = dict.fromkeys(BAND_MEASURES, 0.5) | {f"{name}_ci95": [0.4, 0.6] for name in BAND_MEASURES}
    gained = {f"{name}_gain": 0.1 for name in BAND_MEASURES} | {f"{m}_gain_ci95": [0.05, 0.2] for m in BAND_MEASURES}
    counts = {"hashtags": 2, "from_posts": 7, "to_posts": 9, "hashtags_tested": 1, "test_tags": 5, "test_posts": 4}
    rows = {"mixture_top1": known, "trunk": known}
    empty = dict.fromkeys([*known, *gained])
    return {
        "definition": "by size",
        "n": 6,
        "map_posts": 6,
        "kept": 2,
        "bands": [
            {"band": BANDS[0], "rows": rows, "gains": {"trunk": gained}} | counts,
            {"band": BANDS[2], "rows": dict.fromkeys(rows, empty), "gains": {"trunk": empty}} | counts,
        ],
    }


def each_hashtag(tags):
    """The first on test posts with a threshold, the others on none."""
    first = {"threshold": 0.7, "precision": 0.75, "recall": 0.5, "ap": 0.625, "ap_gain": 0.125}
    mistaken = [{"tag": tag, "n": n} for tag, n in zip(tags[:2], (3, 1), strict=False)]
    common = {"training_posts": 9, "test_posts": 4, "cut": "threshold", "band": "head", "mistaken_for": mistaken}
    bare = dict.fromkeys(first) | {"training_posts": 3, "test_posts": 0, "cut": "top 5", "band": "tail"}
    rest = [{"tag": tag} | common | bare for tag in tags[1:]]
    if len(tags) > 2:
        rest[0]["mistaken_for"] = [{"tag": tag, "n": 1} for tag in tags[2:5]]
    return [{"tag": tags[0]} | common | first, *rest]


def thresholds(tags):
    precision = {"precision": 0.875, "precision_ci95": [0.8, 0.9], "recall": 0.25, "recall_ci95": [0.2, 0.3]}
    good = {
        "wanted": 0.9,
        "hashtags": 2,
        "given": 8,
        "validation_precision": 0.95,
        "validation_recall": 0.3,
    } | precision
    shown = {
        "positives": 20,
        "curve": [(0.5, 1.0), (1.0, 0.5)],
        "threshold": 0.5,
        "validation": [9, 10],
        "test": [7, 8],
    }
    return {
        "validation_posts": 100,
        "fewest_positives": 10,
        "standard_errors": 1.0,
        "wanted": [good, {"wanted": 0.98, "hashtags": 0, "given": 0}],
        "of_hashtags": 0.8,
        "hashtags": [*({"tag": tag} | shown for tag in tags), {"tag": "rare", "positives": 3, "curve": []}],
    }


def rendered(tags=("sea", "sand"), experts=2, hashtags=True, pilot=None):
    """The page of a made-up study; without hashtags as from an evaluation that had no figures of them."""
    names = [f"e{number:03d}" for number in range(experts)]
    measures = dict.fromkeys(MEASURES, 0.5) | {f"{name}_ci95": [0.4, 0.6] for name in MEASURES}
    costs = dict.fromkeys(("parameters", "parameters_used", "multiply_adds", "training_images"), 1234)
    roles = {"trunk": "cheaper", "mixture_top1": "answer"}
    rows = [{"name": name, "title": name, "role": role} | measures | costs for name, role in roles.items()]
    moved = [{"tag": tag, "n": 9, "trunk": 1, "mixture": 2} for tag in tags]
    one = {
        "n": 3,
        "published": True,
        "trunk_p_at_1": 0.25,
        "mixture_p_at_1": 0.5,
        "p_at_1_gain": 0.25,
        "p_at_1_gain_ci95": [-0.1, 0.6],
        "lifted": moved,
        "lowered": moved,
        "hashtags": [[tag, 5, 2.0] for tag in tags],
        "sheets": {"typical": base64.b64encode(b"picture").decode()},
        "size": 10,
    }
    lost = {f"{m.name}_gain": -0.08 for m in PAIRED} | {f"{m.name}_gain_ci95": [-0.1, -0.02] for m in PAIRED}
    return page.render(
        study=demo(),
        table={
            "published": "mixture_top1",
            "n": 6,
            "hashtags_in_map": 2,
            "map_posts": 6,
            "published_gains": {"trunk": lost},
            "measure": "p_at_1",
            "warnings": [],
            "untrained": [],
            "rows": rows,
            "calibration": {
                "definition": "what ECE is",
                "n": 6,
                "temperature": 0.5,
                "ece": 0.25,
                "ece_scaled": 0.125,
                "bins": [{"n": 6, "confidence": 0.75, "right": 0.5}],
                "bins_scaled": [{"n": 6, "confidence": 0.5, "right": 0.5}],
            },
            "thresholds": thresholds(tags),
            "hashtags": len(tags),
        }
        | ({"bands": bands()} if hashtags else {}),
        posts={"read": 12, "accepted": 11, "rejected": 1},
        reasons=dict.fromkeys(tags, 1),
        vocabulary={"hashtags": 2, "dropped": 1, "dropped_by_reason": {"too_few_posts": 1}},
        partition={"experts": experts, "imbalance": 1.0},
        experts=[one | {"key": name, "expert": name} for name in names],
        logs={name: [{"images_seen": 10 * n, "loss": 3 - n, "lr": 0.1} for n in (1, 2)] for name in ("trunk", *names)},
        lineage=[("trunk", "abc", "def")],
        spending=[TrainingCost("trunk", 1, 60.0, 5000)],
        hashtags=each_hashtag(tags) if hashtags else [],
        pilot=pilot,
    )
