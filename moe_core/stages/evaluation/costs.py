"""What each row of the table costs: parameters, multiply-adds for one image, images trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moe_core.engine.context import Context
from moe_core.stages.experts.experts import images_of

if TYPE_CHECKING:
    from moe_core.serving.bundle import Bundle


def costs_of(context: Context, bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Parameters in all, those used for one image, multiply-adds for one image and training images, of each row."""
    from moe_core.models.cost import multiply_adds, parameters

    count = len(bundle.published)
    whole = parameters(bundle.router)
    decoder = parameters(bundle.router.fc)
    shared = context.study.expert.branch_at  # stages that an image passes once, whoever answers
    own = whole - decoder - sum(parameters(module) for module in bundle.router.shared_layers(shared))
    trunk = multiply_adds(bundle.router, bundle.image_size)
    expert = multiply_adds(bundle.router, bundle.image_size, after=shared)
    k = min(context.study.evaluation.topk, count)
    trunk_images = context.need("trunk").metadata["training_images"]
    seen = {
        name: sum(images_of(context.need(name, key)) for key in context.experts)
        for name in ("expert", *(("random_expert", "separate_expert") if context.study.evaluation.controls else ()))
    }

    def cost(total: int, used: int, asked: int, images: int) -> dict[str, Any]:
        return {
            "parameters": total,
            "parameters_used": used,
            "multiply_adds": trunk + asked * expert,
            "training_images": images,
        }

    extra = 0 if context.study.decoder.mode == "frozen" else decoder  # a decoder beside the router's own
    mixture = whole + extra + count * own
    found = {
        "most_frequent": dict.fromkeys(("parameters", "parameters_used", "multiply_adds", "training_images"), 0),
        "trunk": cost(whole, whole, 0, trunk_images),
        "mixture_top1": cost(mixture, whole + extra + own, 1, trunk_images + seen["expert"]),
        "mixture_topk": cost(mixture, whole + extra + k * own, k, trunk_images + seen["expert"]),
        "best_expert_oracle": cost(mixture, whole + extra + count * own, count, trunk_images + seen["expert"]),
    }
    found["mixture_top1_router"] = found["mixture_top1"]
    if context.study.evaluation.controls:
        more = context.need("trunk_same_budget").metadata["training_images"]
        found["trunk_same_budget"] = cost(whole, whole, 0, trunk_images + more)
        if context.study.evaluation.dense_control:
            dense = context.need("dense_same_cost").metadata
            found["dense_same_cost"] = {
                "parameters": dense["parameters"],
                "parameters_used": dense["parameters"],
                "multiply_adds": dense["multiply_adds"],
                "training_images": dense["training_images"],
            }
        found["random_partition"] = cost(mixture, whole + extra + own, 1, trunk_images + seen["random_expert"])
        found["separate_decoders_top1"] = cost(
            whole + count * (own + decoder), whole + own + decoder, 1, trunk_images + seen["separate_expert"]
        )
        for name in ("random_partition", "separate_decoders_top1"):
            found[f"{name}_router"] = found[name]
    return found
