"""The settings of study.toml: frozen models that refuse nonsense when they are made; every field says what it does.

The same models are the recipes' return type, the source of the artifacts' hashes and the text of `hardmoe init`.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from moe_core.data.sources.registry import FORMATS
from moe_core.models.shape import MAX_EXPERTS, MAX_WIDTH, check_stages

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Epochs = Annotated[float, Field(gt=0, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # what FAISS takes
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Shards = Annotated[int, Field(ge=1, le=100_000)]
Resamples = Annotated[int, Field(ge=1, le=1_000_000)]

SCHEMES = ("s3://", "gs://", "az://")  # of buckets


class Strict(BaseModel):
    """Frozen, and an unknown key is an error rather than a setting that silently does nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Source(Strict):
    """Where posts come from."""

    format: str = Field(
        "synthetic", description=f"One of {', '.join(FORMATS)}; docs/reference/sources.md has what each reads."
    )
    uri: str = Field("", description="File, folder, glob or URI of the data; folder: of images; unused by synthetic.")
    table: str = Field(
        "",
        description="folder: CSV, TSV or JSON-lines file of image names and tags, or a glob; empty: the only one.",
    )
    images: str = Field("", description="yfcc: folder of the images, or glob of tars of them; coco: folder of images.")
    id_column: str = Field(
        "", description="Column of a post's id; empty: by the usual names; #row: shard and number of the row."
    )
    image_column: str = Field("", description="Column of the image or of its file name; empty: by the usual names.")
    tags_column: str = Field("", description="Column of tags; empty: by the usual names (tags, raw_tags, hashtags...).")
    caption_column: str = Field(
        "", description="Column of text whose #words are the tags, beside those of tags_column where that is set too."
    )
    user_column: str = Field("", description="Column of the user; empty: by the usual names.")
    taken_at_column: str = Field("", description="Column of the time of the picture; empty: by the usual names.")
    split_column: str = Field(
        "", description="Column of the split; empty: by the usual names, then the names of files; #none: no split."
    )
    original_column: str = Field(
        "", description="Column of the URL of the image, kept with the post; empty: by the usual names (url...)."
    )
    shards: Shards = Field(4, description="synthetic: number of input shards. Other formats: one shard a file.")
    posts: Positive = Field(40_000, description="synthetic: number of posts.")
    seed: Seed = Field(0, description="synthetic: seed of the posts.")

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, name: str) -> str:
        if name not in FORMATS:
            raise ValueError(f"no such format: wanted one of {', '.join(FORMATS)}")
        return name


class Data(Strict):
    """How posts are canonicalized, stored and split."""

    # Stages whose artifacts a field changes. A field that is listed nowhere counts for every stage that reads [data].
    FIELDS_OF: ClassVar[dict[str, set[str]]] = {
        "posts": {"image_size", "store", "min_side", "reject_uniform", "accents", "max_reject_rate"},
        "splits": {
            *("validation", "test", "router", "split_by", "near_duplicates", "near_duplicate_levels", "leaks"),
        },
        "vocabulary": {
            *("accents", "plurals", "min_posts_per_tag", "min_users_per_tag", "max_user_share", "max_tags"),
            *("stop_tags", "synonyms"),
        },
        "training": {"block"},
    }

    image_size: Annotated[int, Field(ge=8, le=1024)] = Field(
        32, description="Side in pixels to which images are resized, once."
    )
    store: Literal["auto", "raw", "jpeg", "png", "webp"] = Field(
        "auto", description="How resized images are kept; auto: raw pixels up to a side of 64, JPEG above."
    )
    min_side: Positive = Field(8, description="Images with a shorter side below this many pixels are rejected.")
    reject_uniform: bool = Field(True, description="Images of one color all over are rejected.")
    accents: Literal["keep", "fold"] = Field(
        "keep", description="fold: accents of Latin, Greek and Cyrillic letters are dropped from hashtags."
    )
    plurals: bool = Field(
        False, description="English plurals count as their singular where that is in the vocabulary itself."
    )
    min_posts_per_tag: Positive = Field(20, description="A tag on fewer training posts leaves the vocabulary.")
    min_users_per_tag: Positive = Field(1, description="A tag used by fewer distinct users leaves the vocabulary.")
    max_user_share: Fraction = Field(
        0.8, description="A tag with a larger share of its posts from one user leaves the vocabulary; 1: never."
    )
    max_tags: Positive = Field(100_000, description="Vocabulary size limit; the most frequent tags stay.")
    stop_tags: str = Field("", description="File with one tag a line that never enters the vocabulary.")
    synonyms: str = Field(
        "", description="File of lines 'written = meant', applied before counting; 'tag = tag' keeps a plural."
    )
    validation: Fraction = Field(
        0.05, description="Share held out for choices: which experts are published, which answer."
    )
    test: Fraction = Field(0.1, description="Share held out for the table, where the source gives no split.")
    split_by: Literal["user", "id"] = Field(
        "user",
        description="Posts of one user (or id) lie in one split, except copies of another's earlier post.",
    )
    router: Fraction = Field(0.0, description="Share held out as `router`, for your own uses: no stage reads it.")
    near_duplicates: Literal["group", "off"] = Field(
        "group", description="group: copies of one picture always lie in one split; off: copies are not searched."
    )
    near_duplicate_levels: Annotated[float, Field(ge=0, le=32)] = Field(
        8.0, description="Gray levels of 255 by which no cell of two copies' 8x8 thumbnails differs."
    )
    leaks: Literal["report", "remove"] = Field(
        "report", description="Copies across given splits: report lists them; remove keeps only those most held out."
    )
    max_reject_rate: Fraction = Field(0.5, description="Ingest stops with an error when a larger share is rejected.")
    block: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="Adjacent posts that a training reads together, from 256 places at a time: 64 where posts lie in "
        "an object store or on a spinning disk; 1: each post by itself.",
    )

    @model_validator(mode="after")
    def _some_are_for_training(self) -> "Data":
        if self.test + self.validation + self.router >= 1:
            raise ValueError(
                f"test {self.test}, validation {self.validation} and router {self.router} leave nothing to train on"
            )
        return self

    def settings_of(self, stage: str, without: Iterable[str] = ()) -> dict[str, Any]:
        """The fields that a stage's version is a hash of: its own, and those that are listed for no stage."""
        of_others = set().union(*self.FIELDS_OF.values()) - self.FIELDS_OF[stage]
        return self.model_dump(exclude=of_others.union(without))

    def counted_in_training(self) -> dict[str, Any]:
        """The table [data] of which a training's version is a hash; none for blocks of 1, as before there were any."""
        return {"data": {"block": self.block}} if self.block > 1 else {}


class Network(Strict):
    """A ResNet by torchvision's parameter names."""

    block: Literal["basic", "bottleneck"] = Field("basic", description="Residual block.")
    stem: Literal["small", "imagenet"] = Field(
        "small", description="small: 3x3 stride 1; imagenet: 7x7 stride 2 and max pooling."
    )
    widths: tuple[Width, ...] = Field((8, 16, 32), strict=False, description="Channels of each stage.")
    depths: tuple[Positive, ...] = Field((1, 1, 1), strict=False, description="Blocks of each stage.")
    embedding: int = Field(
        128, ge=0, le=MAX_WIDTH, description="Width of a 1x1 convolution before the pooling; 0: none."
    )

    @model_validator(mode="after")
    def _stages_agree(self) -> "Network":
        check_stages(self.widths, self.depths)
        return self


class Training(Strict):
    """One run of the training loop."""

    epochs: Epochs = Field(15, description="Passes over the posts.")
    batch_size: Positive = Field(128, description="Images a batch, in each process that trains.")
    accumulate: Positive = Field(1, description="Batches whose gradients are averaged into one step.")
    lr: Annotated[float, Field(gt=0)] = Field(0.2, description="Highest learning rate.")
    momentum: Fraction = Field(0.9, description="Nesterov momentum.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="L2, on matrices and filters only.")
    schedule: Literal["one-cycle", "cosine"] = Field("one-cycle", description="Learning rate over the steps.")
    warmup: Fraction = Field(0.2, description="one-cycle: share of the steps that climb.")
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="softmax: cross-entropy, target 1/k on each of k tags; sigmoid: binary cross-entropy."
    )
    resample: Literal["off", "sqrt", "linear"] = Field(
        "off",
        description="Posts whose rarest tag is on f < resample_below of them are seen more often; sqrt: "
        "(resample_below/f)^1/2 times, linear: resample_below/f times. The number of steps stays.",
    )
    resample_below: Positive = Field(1000, description="Tags on fewer posts than this count as rare for resample.")
    flip: bool = Field(True, description="Random horizontal flips.")
    crop: Annotated[int, Field(ge=0, le=1024)] = Field(4, description="Random crops after padding by this many pixels.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the device has it."
    )
    capture: bool = Field(
        False, description="GPU: each step is one CUDA graph, for small networks; not with accumulate or ranks."
    )
    deterministic: bool = Field(
        False, description="GPU: the same bits from the same start; slower. A CPU has them anyway, see docs/gpu.md."
    )
    device_mib: Annotated[int, Field(ge=0, lt=2**31)] | Literal["auto"] = Field(
        "auto", description="GPU: images that fit into this many MiB stay on it; auto: half of what is free; 0: none."
    )
    checkpoint_seconds: Annotated[float, Field(gt=0)] = Field(20.0, description="A resumable checkpoint this often.")
    seed: Seed = Field(0, description="Seed of weights, batch order and augmentation.")

    def counted(self) -> dict[str, Any]:
        """The settings that change the weights: not how often it can be resumed, where its images lie, or how its steps
        are launched."""
        return self.model_dump(exclude={"checkpoint_seconds", "device_mib", "capture"})


class TrunkSetup(Strict):
    """How the trunk starts and on how many devices; how it trains is `trunk`."""

    start: str = Field(
        "",
        description="File of weights to start from, .safetensors or .pth with torchvision's names (and timm's); "
        "its last layer is left out. Relative to study.toml.",
    )
    ranks: Annotated[int, Field(ge=1, le=1024)] = Field(
        1,
        description="Processes that train together, one a GPU, or on the CPU where there is none; "
        "with cluster.engine = ray on any nodes.",
    )


class Partition(Strict):
    """The gate: how posts are cut into clusters, one an expert."""

    experts: Annotated[int, Field(ge=1, le=MAX_EXPERTS)] = Field(8, description="K: clusters, and networks trained.")
    pca: Annotated[int, Field(ge=1, le=256)] = Field(128, description="Dimensions kept by PCA-whitening, at most.")
    fine: int = Field(
        0, ge=0, le=1_000_000, description="Fine centroids packed into K near-equal experts; 0: one level, the paper's."
    )
    iterations: Positive = Field(30, description="k-means iterations.")
    restarts: Positive = Field(3, description="k-means starts; the best objective is kept.")
    max_fit_posts: Positive = Field(2_000_000, description="Posts used to fit; recorded with the partition.")
    seed: Seed = Field(0, description="Seed of k-means, and of the random partition that is the control.")


class Repartition(Strict):
    """What happens to trunk, vocabulary, gate and experts when shards arrive."""

    cron: str = Field("0 3 * * 1", description="Schedule `weekly_repartition`, which is stopped until it is started.")
    timezone: str = Field(
        "UTC", description="Time zone of `cron`, by its IANA name, such as Europe/Berlin; summer time is observed."
    )
    then: Literal["partition", "expert", "mixture", "report"] = Field(
        "partition", description="How far the job `repartition` goes: up to this asset and all that it needs."
    )
    retrain_share: Fraction = Field(
        0.1,
        description="An expert is retrained when more than this share of the posts that it was trained on has been "
        "added or removed.",
    )
    start: Literal["continue", "usual"] = Field(
        "continue", description="continue: a retrained expert starts from its old weights; usual: as a new one does."
    )
    growth: Annotated[float, Field(ge=1)] = Field(
        2.0, description="Retrain trunk and vocabulary when training posts exceed this multiple of their snapshot."
    )
    drift_far: Fraction = Field(
        0.05, description="Sensor `drift`: share of new posts farther from their centroid than 99 % at the fit."
    )
    drift_ambiguous: Fraction = Field(
        0.15, description="Sensor `drift`: share of new posts nearer to a tie of two experts than 95 % were at the fit."
    )
    drift_imbalance: Annotated[float, Field(ge=1)] = Field(
        1.5, description="Sensor `drift`: largest expert by the mean, as a multiple of what it was at the fit."
    )

    @field_validator("timezone")
    @classmethod
    def _timezone_is_known(cls, name: str) -> str:
        try:
            if name != "UTC":  # which needs no database
                ZoneInfo(name)
        except (KeyError, ValueError, OSError):  # not in the database; no name of a file; a folder in it
            raise ValueError("no such time zone: wanted an IANA name, such as 'Europe/Berlin', or 'UTC'") from None
        return name

    @model_validator(mode="after")
    def _cron_has_five_fields(self) -> "Repartition":
        if not re.fullmatch(r"@\w+|[\d*/,\-A-Za-z]+( [\d*/,\-A-Za-z]+){4}", self.cron):
            raise ValueError(f"cron {self.cron!r} must have five fields, such as '0 3 * * 1'")
        return self


class Expert(Strict):
    """How experts start; how they train is `expert_training`."""

    start: Literal["branch", "scratch"] = Field("branch", description="From the trunk's weights or from new ones.")
    branch_at: int = Field(
        0, ge=0, description="The trunk's stem and first stages that experts share unchanged; 0: a whole network each."
    )
    use_trunk_where_better: bool = Field(
        True, description="The trunk answers where its expert does not beat it on validation posts."
    )
    router_weight: Fraction | Literal["validation"] = Field(
        "validation",
        description="Weight of the trunk's logits where they are mixed into the expert's; validation: of 0, 0.1 ... "
        "0.7 the one with the lowest cross-entropy on validation posts.",
    )


class Decoder(Strict):
    """The last layer that all experts share."""

    mode: Literal["frozen", "refit", "joint"] = Field(
        "frozen",
        description="frozen: the trunk's; refit: fitted on the experts' features; joint: trained with the experts.",
    )
    refit_epochs: Epochs = Field(2.0, description="refit: passes over the posts.")
    refit_lr: Annotated[float, Field(gt=0)] = Field(0.02, description="refit: highest learning rate.")
    rounds: Annotated[int, Field(ge=1, le=9999)] = Field(
        15, description="joint: rounds that an expert's steps are cut into; each ends with one decoder for all."
    )
    settle_rounds: int = Field(1, ge=0, description="joint: last rounds, in which the decoder is frozen.")
    outer_lr: Annotated[float, Field(gt=0)] = Field(
        0.7, description="joint: step along the mean change of the experts' decoders, weighted by their posts."
    )
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="joint: Nesterov momentum of that step."
    )

    @model_validator(mode="after")
    def _some_rounds_move_it(self) -> "Decoder":
        if self.settle_rounds >= self.rounds:
            raise ValueError(f"settle_rounds {self.settle_rounds} must be fewer than rounds {self.rounds}")
        return self


class Pilot(Strict):
    """What `hardmoe pilot` tries, to tell a mixture's gain before its experts are trained (docs/how-to/pilot.md)."""

    experts: tuple[Annotated[int, Field(ge=2, le=MAX_EXPERTS)], ...] = Field(
        (4, 8, 16, 32),
        min_length=1,
        strict=False,
        description="Numbers of experts to compare; one too large for the posts is left out.",
    )
    clusters: Annotated[int, Field(ge=2, le=MAX_EXPERTS)] = Field(
        3, description="Clusters of each that experts are trained on, at most; more narrow the interval."
    )
    share: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.25, description="Largest share of a cluster's posts that an expert is trained on; a half and a quarter, too."
    )
    seed: Seed = Field(0, description="Seed of what is drawn: clusters, and posts of each.")


class Publish(Strict):
    """When a new mixture takes the published one's place."""

    margin: Fraction = Field(
        0.005,
        description="A new mixture is published unless its score on validation posts is lower than the published one's "
        "by more than this (docs/explanation/publication.md).",
    )
    measure: Literal["auto", "p_at_1", "r_at_5", "r_at_10", "map"] = Field(
        "auto",
        description="The score that mixtures are judged by, for publication and in the comparison of `results`; auto: "
        "mAP with the sigmoid loss, else P@1, or R@5 or R@10 where posts carry more than three tags.",
    )
    license: str = Field(
        "",
        max_length=200,
        description="License of the mixtures, such as CC-BY-4.0, for their MODEL_CARD.md; empty: not stated. No result "
        "is stale by it.",
    )


class Evaluation(Strict):
    """The comparison table."""

    bootstrap: Resamples = Field(1000, description="Resamples behind each 95 % interval.")
    topk: Positive = Field(8, description="Experts averaged in mixture_topk, at most K.")
    temperature: Annotated[float, Field(gt=0)] | Literal["validation"] = Field(
        "validation",
        description="T of softmax(-d^2/T) in mixture_topk; validation: of 0.02 ... 1 the one with the lowest "
        "cross-entropy on validation posts.",
    )
    controls: bool = Field(
        True, description="Train the controls (same budget, dense, random partition, separate decoders) too."
    )
    dense_control: bool = Field(
        True,
        description="controls: train dense_same_cost too, which takes as many multiply-adds as trunk and experts do.",
    )
    labels_file: str = Field(
        "",
        description="Table of other labels of posts (.parquet, .csv, .tsv), which the frozen embeddings are to "
        "tell by neighbors and a linear probe; empty: none. Relative to study.toml.",
    )
    labels_column: str = Field("label", description="labels_file: column of the label.")
    labels_id_column: str = Field("id", description="labels_file: column of the post's id.")

    def counted(self) -> dict[str, Any]:
        """The settings that change the table; those of labels only where there are any."""
        without = {"labels_file"} if self.labels_file else {"labels_file", "labels_column", "labels_id_column"}
        return self.model_dump(exclude=without)


class Search(Strict):
    """How posts are searched (docs/how-to/search.md)."""

    index_from: Positive = Field(50_000, description="Posts from which an index is built; fewer are all compared.")
    recall: Annotated[float, Field(gt=0, le=1)] = Field(
        0.99, description="Share of the 20 nearest posts that the index is to find; more takes longer."
    )
    memory_mib: Positive = Field(
        2048, description="MiB of vectors in memory, at most; more are read from the disk for each query."
    )


class Alerts(Strict):
    """A command to run for each failed run, while the sensor `alert` is started (docs/how-to/operations.md)."""

    command: tuple[str, ...] = Field(
        (),
        strict=False,  # a list of TOML
        description="Program and its arguments, run for each failed run, which it reads as JSON; empty: none.",
    )


class Storage(Strict):
    """Where artifacts, tables and decisions lie. No result is stale by it, and none moves when it changes."""

    uri: str = Field(
        "",
        description="Bucket and prefix of the study's own, such as s3://bucket/cats, gs:// or az://; "
        "empty: the folder of study.toml. Credentials come from the environment.",
    )
    endpoint: str = Field("", description="URL of a server that is not Amazon's, such as http://127.0.0.1:8333.")
    cache_gib: Annotated[float, Field(gt=0, le=1e6)] = Field(
        50.0, description="uri: GiB of fetched files that each machine keeps in HARDMOE_CACHE, its local folder."
    )

    @model_validator(mode="after")  # of the table, so that the error shows no secret
    def _uri_names_a_bucket_and_no_secret(self) -> "Storage":
        for name, value in (("uri", self.uri), ("endpoint", self.endpoint)):
            if re.search("[@?&;#]", value):
                raise ValueError(f"{name} holds more than an address: credentials belong in the environment")
        if self.uri and not self.uri.startswith(SCHEMES):
            raise ValueError(f"uri = {self.uri!r}: wanted a bucket, as in {', '.join(SCHEMES)}, or nothing")
        if self.uri and not re.fullmatch(r"\w+://[A-Za-z0-9][\w.-]*(/\w[\w.-]*)*/?", self.uri, re.ASCII):
            raise ValueError(
                f"uri = {self.uri!r}: wanted a bucket and a prefix of letters, digits, '.', '-' and '_' between '/'"
            )
        if self.endpoint and not re.fullmatch(r"https?://[\w.:\[\]-]+/?", self.endpoint, re.ASCII):
            raise ValueError(f"endpoint = {self.endpoint!r}: wanted a URL, as in http://127.0.0.1:8333")
        if self.endpoint and not self.uri:
            raise ValueError(f"endpoint = {self.endpoint!r} does nothing without uri")
        return self


class Cluster(Strict):
    """Several machines that work on the study at once (docs/how-to/several-machines.md). No result is stale by it."""

    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        description="Threads of each training, on every machine: results follow from them. 0: by each machine's cores.",
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="Where tasks run; local: on this machine; ray: on the nodes of a Ray cluster, with `threads`.",
    )
    address: str = Field(
        "auto", description="ray: HOST:PORT of the cluster; auto: RAY_ADDRESS, else the cluster of this machine."
    )

    @field_validator("address")
    @classmethod
    def _address_is_of_a_cluster(cls, address: str) -> str:
        return ray_address(address)


def ray_address(address: str) -> str:
    """The address of a Ray cluster. Raises ValueError for what is none."""
    if address.startswith("ray://"):
        raise ValueError(
            "the work of a Ray client is lost with its connection: start the command on a node of the cluster, with "
            "'auto' or 'HOST:PORT'"
        )
    if address != "auto" and not re.fullmatch(r"[^\s:/]+:\d+|\[[0-9a-fA-F:]+\]:\d+", address):
        raise ValueError("wanted 'auto' or HOST:PORT, such as 'gpu01:6379'")
    return address


class Study(Strict):
    """All the settings of one study."""

    name: str = Field("demo", description="Letters, digits, '-' and '_'; names the Dagster partition sets.")
    asset_prefix: str = Field(
        "", description="Prefix of the keys of its Dagster assets; needed where studies share one Dagster instance."
    )
    recipe: str = Field("", description="Recipe that it started from; for the record only.")
    source: Source = Source()
    data: Data = Data()
    network: Network = Network()
    trunk: Training = Field(Training(), description="How the trunk is trained.")
    trunk_setup: TrunkSetup = TrunkSetup()
    expert_training: Training = Field(Training(), description="How an expert is trained, and every control.")
    partition: Partition = Partition()
    repartition: Repartition = Repartition()
    expert: Expert = Expert()
    decoder: Decoder = Decoder()
    pilot: Pilot = Pilot()
    publish: Publish = Publish()
    evaluation: Evaluation = Evaluation()
    search: Search = Search()
    alerts: Alerts = Alerts()
    store: Storage = Storage()
    cluster: Cluster = Cluster()

    def changed(self, **settings: Any) -> "Study":
        """With other settings, unchecked: a dict names those of a table that change, such as trunk={"epochs": 3.0}."""
        update = {
            name: getattr(self, name).model_copy(update=value) if isinstance(value, dict) else value
            for name, value in settings.items()
        }
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _losses_agree(self) -> "Study":
        if self.trunk.loss != self.expert_training.loss:
            raise ValueError(
                f"trunk.loss {self.trunk.loss!r} and expert_training.loss {self.expert_training.loss!r} must be equal: "
                "their answers are averaged and share a decoder"
            )
        return self

    @model_validator(mode="after")
    def _branch_is_within(self) -> "Study":
        at, stages = self.expert.branch_at, len(self.network.widths)
        if at >= stages:
            raise ValueError(f"expert.branch_at = {at} of {stages} stages: at least one must be the expert's own")
        if at and self.expert.start == "scratch":
            raise ValueError(f"expert.branch_at = {at} shares stages of the trunk: it needs expert.start = 'branch'")
        return self

    @model_validator(mode="after")
    def _name_is_plain(self) -> "Study":
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", self.name):
            raise ValueError(f"name {self.name!r} must be 1 to 64 letters, digits, '-' or '_'")
        if not re.fullmatch(r"\w{0,64}", self.asset_prefix, re.ASCII):
            raise ValueError(f"asset_prefix {self.asset_prefix!r} must be at most 64 letters, digits or '_'")
        return self
