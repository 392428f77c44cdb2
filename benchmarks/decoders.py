"""The shared decoder's modes on one study: experts, decoder, mixture and evaluation of each, without controls.

    python benchmarks/decoders.py STUDY.toml [NAME ...]

The study's trunk and partition are made once and are the same for all. Prints one row a variant: P@1 and R@5 of the
experts alone, with the router's answer mixed in, and of top-k; then the agreement of the embedding space.
"""

import argparse
import json
from pathlib import Path

from moe_core.engine.build import build_all
from moe_core.settings import Decoder, Study
from moe_core.study_file import load_study
from moe_core.workspace import open_study


def variants(base: Decoder) -> dict[str, Decoder]:
    def joint(**more: float) -> Decoder:
        return Decoder.model_validate(base.model_dump() | {"mode": "joint"} | more)

    found = {mode: Decoder.model_validate(base.model_dump() | {"mode": mode}) for mode in ("frozen", "refit")}
    for rounds in (15, 30):
        for lr in (0.7, 1.0):
            for momentum in (0.9, 0.0):
                name = f"joint-{rounds}-{lr}-{momentum}"
                found[name] = joint(rounds=rounds, outer_lr=lr, outer_momentum=momentum, settle_rounds=1)
    for settle in (0, 3):
        found[f"joint-15-1.0-0.0-settle{settle}"] = joint(
            rounds=15, outer_lr=1.0, outer_momentum=0.0, settle_rounds=settle
        )
    return found


def table_of(study: Study, root: Path) -> dict:
    context = open_study(study, root)
    graph = context.planner.graph
    build_all(context, [name for name in graph.usual if not (graph[name].control or name in ("embeddings", "report"))])
    return json.loads(context.need("evaluation").file("table.json").read_text("utf-8"))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("study", type=Path)
    arguments.add_argument("names", nargs="*", help="variants, all by default")
    said = arguments.parse_args()
    study = load_study(said.study)
    evaluation = study.evaluation.model_copy(update={"controls": False})
    every = variants(study.decoder)
    print("| decoder | `mixture_top1` | `mixture_top1_router` | `mixture_topk` | within | across |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in said.names or every:
        changed = study.model_copy(update={"decoder": every[name], "evaluation": evaluation})
        table = table_of(changed, said.study.absolute().parent)
        rows = {row["name"]: row for row in table["rows"]}
        cells = [
            f"{rows[row]['p_at_1']:.4f} / {rows[row]['r_at_5']:.4f}"
            for row in ("mixture_top1", "mixture_top1_router", "mixture_topk")
        ]
        agreement = {row["name"]: row for row in table["embedding_agreement"]["rows"]}
        if agreement:
            cells += [f"{agreement['mixture']['within']:.4f}", f"{agreement['mixture']['across']:.4f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
