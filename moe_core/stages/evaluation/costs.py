"""Cost of each row of the table: parameters, multiply-adds for one image, images trained on."""

from moe_core.engine.context import Context
from moe_core.evaluation.measures import COSTS
from moe_core.models.cost import multiply_adds, parameters
from moe_core.serving.bundle import Bundle
from moe_core.stages.experts.experts import images_of
from moe_core.stages.experts.modes import mode_of

RowCost = dict[str, int]  # by the names of COSTS


class Costs:
    """Sizes of a study's networks, from which the rows' costs follow."""

    def __init__(self, context: Context, bundle: Bundle) -> None:
        shared = context.study.expert.branch_at  # stages that an image passes once, however many experts answer
        self.context = context
        self.experts: int = len(bundle.published)
        self.topk: int = min(context.study.evaluation.topk, self.experts)
        self.network = parameters(bundle.router)
        self.decoder = parameters(bundle.router.fc)
        self.own = self.network - self.decoder - sum(map(parameters, bundle.router.shared_layers(shared)))
        self.shared_decoder = self.decoder if mode_of(context.study).own_layer else 0  # beside the router's own
        self.trunk_adds = multiply_adds(bundle.router, bundle.image_size)
        self.expert_adds = multiply_adds(bundle.router, bundle.image_size, after=shared)

    @property
    def nothing(self) -> RowCost:
        """Cost of an answer without a network."""
        return dict.fromkeys((cost.name for cost in COSTS), 0)

    def one_network(self, *stages: str) -> RowCost:
        """Cost of one network of the trunk's shape, trained by these stages one after the other."""
        images = sum(self.context.need(stage).metadata["training_images"] for stage in stages)
        return _cost(self.network, self.network, self.trunk_adds, images)

    def as_recorded(self, stage: str) -> RowCost:
        """Cost of one network of its own shape, as its artifact has it."""
        recorded = self.context.need(stage).metadata
        parameters = recorded["parameters"]
        return _cost(parameters, parameters, recorded["multiply_adds"], recorded["training_images"])

    def routed(self, stage: str, computed: int, own_decoders: bool = False) -> RowCost:
        """Cost of the trunk and its experts, trained by a stage, of which `computed` look at an image."""
        own = self.own + (self.decoder if own_decoders else 0)
        shared = self.network + (0 if own_decoders else self.shared_decoder)
        images = self.context.need("trunk").metadata["training_images"]
        images += sum(images_of(self.context.need(stage, key)) for key in self.context.experts)
        adds = self.trunk_adds + computed * self.expert_adds
        return _cost(shared + self.experts * own, shared + computed * own, adds, images)


def _cost(parameters: int, used: int, multiply_adds: int, training_images: int) -> RowCost:
    return dict(zip((cost.name for cost in COSTS), (parameters, used, multiply_adds, training_images), strict=True))
