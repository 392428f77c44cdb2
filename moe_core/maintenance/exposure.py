"""Which networks were trained on given posts, by what the artifacts in the store record. In doubt, one was."""

from moe_core.stages.gate import assignment
from moe_core.store.artifact import Artifact
from moe_core.store.protocols import ArtifactStore

HELD_OUT = ("validation", "test", "dropped")
Post = tuple[str, str]  # shard, id


def networks_that_saw(store: ArtifactStore, posts: set[Post]) -> list[Artifact]:
    """Networks in the store that were trained on some of the posts, or made from a network that was.

    All trunks count, and every dense control. An expert names its members' hash, and so does the partition whose
    assignment lists them; an expert whose partition is gone counts.
    """
    trained = _trained_on(store, posts)
    if not trained:
        return []
    theirs, known = _clusters_with(store, trained)
    saw = {a.version: a for name in ("trunk", "dense_same_cost") for a in store.everything(name)}
    for name in ("joint_experts", "random_joint_experts"):  # on the posts of all experts, through the decoder
        for a in store.everything(name):
            members = {members for key, members in a.inputs.items() if key != "trunk"}
            if members & theirs or members - known:
                saw[a.version] = a
    for name in ("expert", "random_expert", "separate_expert"):
        for a in store.everything(name):
            generation = a.inputs.get("joint_experts") or a.inputs.get("random_joint_experts")
            if a.inputs["members"] in theirs or a.inputs["members"] not in known or generation in saw:
                saw[a.version] = a
        experts = store.everything(name)  # one that resumed from weights that saw them did, too
        while resumed := [a for a in experts if a.inputs.get("from") in saw and a.version not in saw]:
            saw |= {a.version: a for a in resumed}
    for name in ("trunk_same_budget", "shared_decoder", "random_decoder", "mixture"):
        saw |= {a.version: a for a in store.everything(name) if set(a.inputs.values()) & set(saw)}
    return list(saw.values())


def _trained_on(store: ArtifactStore, posts: set[Post]) -> set[Post]:
    """The posts but for those that every splits artifact holds out."""
    import polars as pl

    wanted = pl.DataFrame(sorted(posts), schema={"shard": pl.String, "id": pl.String}, orient="row")
    held, trained = set[Post](), set[Post]()
    for artifact in store.everything("splits"):
        rows = pl.read_parquet(artifact.file("splits.parquet"), glob=False).join(wanted, on=["shard", "id"], how="semi")
        for shard, post_id, split in rows.select("shard", "id", "split").iter_rows():
            (held if split in HELD_OUT else trained).add((shard, post_id))
    return posts - (held - trained)


def _clusters_with(store: ArtifactStore, trained: set[Post]) -> tuple[set[str], set[str]]:
    """(hashes of the clusters, of any partition, with one of the posts among their members; hashes of all clusters)."""
    import polars as pl

    theirs, known = set[str](), set[str]()
    posts = pl.DataFrame(sorted(trained), schema={"shard": pl.String, "id": pl.String}, orient="row")
    for partition in store.everything("partition"):
        parts = assignment.batches(partition, ["shard", "id", "expert", "random"])
        rows = pl.concat([part.join(posts, on=["shard", "id"], how="semi") for part in parts])
        recorded = None  # only a partition that follows another records what its experts were trained on
        if "trained.parquet" in partition.files:
            recorded = pl.read_parquet(partition.file("trained.parquet"), glob=False).join(posts, on="id", how="semi")
        for column, name in (("expert", "members"), ("random", "random_members")):
            members = partition.metadata[name]
            known |= set(members.values())
            if recorded is None:
                keys = list(members)
                theirs |= {members[keys[k]] for k in rows[column].unique().to_list()}
            else:
                theirs |= {members[key] for key in recorded.filter(pl.col("of") == column)["key"].unique().to_list()}
    return theirs, known
