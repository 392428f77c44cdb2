"""Posts written out in every format that hardmoe reads. Each writer returns the source that reads them back."""

import bz2
import csv
import hashlib
import io
import json
import tarfile
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from helpers.canonical import canonical_tags
from moe_core.data.sources.raw import RAW
from moe_core.data.synthetic import synthetic_posts
from moe_core.settings import Source

COLUMNS = ["id", "image", "tags", "user", "taken_at", "split"]
TYPES = pa.schema([RAW.field(name) for name in COLUMNS])


def random_posts(count=120, seed=3):
    rows = [row for batch in synthetic_posts(0, 1, count, seed, 16) for row in batch.to_pylist()]
    for number, row in enumerate(rows):
        row["split"] = ("train", "test", None)[number % 3]
    # some of every kind, whatever the seed
    rows[5]["image"], rows[6]["image"], rows[7]["image"] = b"", rows[7]["image"][:60], b"<html>404 Not Found</html>"
    rows[8]["tags"] = ["!!!", "..."]
    return [{name: row[name] for name in COLUMNS} for row in rows]


def table_of(posts):
    return pa.Table.from_pylist(posts, schema=TYPES)


def tar_of(path, members, mode="w"):
    """A tar of (name, bytes), or of ready TarInfo without content."""
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _with(table, **columns):
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _files(posts, folder):
    (folder / "pictures").mkdir(parents=True)
    for post in posts:
        (folder / "pictures" / f"{post['id']}.png").write_bytes(post["image"])


def parquet(posts, folder):
    pq.write_table(table_of(posts), folder / "posts.parquet", row_group_size=50)
    return Source(format="parquet", uri=str(folder / "posts.parquet"))


def parquet_uri(posts, folder):
    source = parquet(posts, folder)
    return source.model_copy(update={"uri": "file://" + source.uri.replace("posts", "p%6Fsts")})


def parquet_hugging_face(posts, folder):
    images = [{"bytes": post["image"], "path": None} for post in posts]
    table = _with(table_of(posts), image=pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
    pq.write_table(table, folder / "posts.parquet")
    return Source(format="parquet", uri=str(folder))


def parquet_hugging_face_paths(posts, folder):
    _files(posts, folder)
    images = [{"bytes": None, "path": f"pictures/{post['id']}.png"} for post in posts]
    images[0]["path"] = str(folder / images[0]["path"])
    table = _with(table_of(posts), image=pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
    pq.write_table(table, folder / "posts.parquet")
    return Source(format="parquet", uri=str(folder / "*.parquet"))


def parquet_odd_types(posts, folder):
    table = table_of(posts)
    tags = pa.array([", ".join(post["tags"]) for post in posts]).dictionary_encode()
    odd = _with(
        table,
        image=table["image"].cast(pa.large_binary()),
        tags=tags,
        user=table["user"].combine_chunks().dictionary_encode(),
        taken_at=table["taken_at"].cast(pa.timestamp("ns")).cast(pa.timestamp("ns", "Europe/Paris")),
        id=table["id"].cast(pa.large_string()),
    )
    pq.write_table(odd, folder / "posts.parquet")
    return Source(format="parquet", uri=str(folder))


def parquet_captions(posts, folder):
    said = ["Look! " + " ".join(f"#{tag}" for tag in canonical_tags(post["tags"])) + " (mine)" for post in posts]
    table = table_of(posts).drop_columns("tags").append_column("text", pa.array(said))
    pq.write_table(table, folder / "posts.parquet")
    return Source(format="parquet", uri=str(folder), caption_column="text")


def arrow_file(posts, folder):
    table = table_of(posts)
    image = table["image"].combine_chunks().cast(pa.binary_view())
    tags = pa.array([post["tags"] for post in posts], pa.list_view(pa.string_view()))
    views = _with(table, image=image, tags=tags, user=table["user"].combine_chunks().cast(pa.string_view()))
    with pa.ipc.new_file(folder / "posts.arrow", views.schema) as file:
        file.write_table(views, max_chunksize=50)
    return Source(format="arrow", uri=str(folder))


def arrow_stream(posts, folder):
    table = table_of(posts)
    with pa.ipc.new_stream(folder / "posts.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=50)
    return Source(format="arrow", uri=str(folder / "posts.arrow"))


def feather(posts, folder):
    pyarrow.feather.write_feather(table_of(posts), str(folder / "posts.feather"), compression="zstd")
    return Source(format="arrow", uri=str(folder))


def lance(posts, folder):
    import lance

    lance.write_dataset(table_of(posts), str(folder / "posts.lance"), max_rows_per_file=50)
    return Source(format="lance", uri=str(folder / "posts.lance"))


def _csv(posts, folder, name, delimiter, bom=""):
    _files(posts, folder)
    with open(folder / name, "w", encoding="utf-8", newline="") as file:
        file.write(bom)
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["Photo_ID", "file_name", "hashtags", "owner", "date_taken", "subset", "note"])
        for post in posts:
            row = [post["id"], f"pictures/{post['id']}.png", ", ".join(post["tags"]), post["user"]]
            writer.writerow([*row, post["taken_at"].isoformat(), post["split"], 'a "quoted",\nnote'])
    return Source(format="folder", uri=str(folder))


def folder_csv(posts, folder):
    return _csv(posts, folder, "posts.csv", ",", "\ufeff")


def folder_tsv(posts, folder):
    return _csv(posts, folder, "posts.tsv", "\t").model_copy(update={"uri": str(folder / "posts.tsv")})


def folder_jsonl(posts, folder):
    _files(posts, folder)
    with open(folder / "posts.jsonl", "w", encoding="utf-8") as file:
        for post in posts:
            row = {"id": post["id"], "path": f"{post['id']}.png", "what": post["tags"], "user": post["user"]}
            row |= {"time": post["taken_at"].timestamp(), "split": post["split"]}
            # naive times are UTC
            row["time"] = (post["taken_at"] - type(post["taken_at"])(1970, 1, 1)).total_seconds()
            file.write(json.dumps(row) + "\n\n")
    (folder / "posts.jsonl").rename(folder / "pictures" / "posts.jsonl")
    return Source(format="folder", uri=str(folder), table="*/posts.jsonl", tags_column="what")


def _samples(posts, about):
    for post in posts:
        yield f"{post['id']}.png", post["image"]
        for suffix, text in about(post).items():
            yield f"{post['id']}.{suffix}", text.encode()


def _json(post, **more):
    return json.dumps({"user": post["user"], "taken_at": str(post["taken_at"]), "split": post["split"]} | more)


def webdataset(posts, folder):
    tar_of(folder / "posts.tar", _samples(posts, lambda post: {"json": _json(post, tags=post["tags"])}))
    return Source(format="webdataset", uri=str(folder))


def webdataset_gz(posts, folder):
    about = {"npy": "not ours"}
    members = _samples(posts, lambda post: {"json": _json(post, hashtags=", ".join(post["tags"]))} | about)
    tar_of(folder / "posts.tar.gz", members, "w:gz")
    return Source(format="webdataset", uri=str(folder))


def webdataset_txt(posts, folder):
    tar_of(
        folder / "posts.tar", _samples(posts, lambda post: {"json": _json(post), "txt": "\n".join(post["tags"]) + "\n"})
    )
    return Source(format="webdataset", uri=str(folder / "*.tar"))


def img2dataset(posts, folder):
    def about(post):
        caption = "a photo of " + " ".join(f"#{tag}" for tag in canonical_tags(post["tags"]))
        fields = {"caption": caption, "url": "https://x.test/a.png", "key": post["id"], "status": "success"}
        return {"txt": caption, "json": _json(post, **fields, error_message=None, width=16, height=16, exif="{}")}

    tar_of(folder / "00000.tar", _samples(posts, about))
    keys = pa.table({"key": [post["id"] for post in posts], "status": ["success"] * len(posts)})
    pq.write_table(keys, folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return Source(format="webdataset", uri=str(folder))


def hash_of(post):
    return hashlib.md5(post["id"].encode()).hexdigest()


def yfcc_line(post, fields, marker="0"):
    plain = [post["id"], quote_plus(post["user"]), "nick+name", str(post["taken_at"]) + ".0", "1300000000", "Canon"]
    plain += ["A+title", "words", ",".join(quote_plus(tag) for tag in post["tags"]), "geo:lat=1,camera:iso=2"]
    plain += ["1.0", "2.0", "16", "http://x.test/p", "http://x.test/d.jpg", "license", "http://x.test/l"]
    plain += ["1", "2", "s", "so", "jpg", marker]
    assert len(plain) == 23
    return "\t".join(plain if fields == 23 else ["0", plain[0], hash_of(post), *plain[1:]]) + "\n"


def yfcc_23(posts, folder):
    _files(posts, folder)
    (folder / "yfcc100m_dataset").write_text("".join(yfcc_line(post, 23) for post in posts))
    return Source(format="yfcc", uri=str(folder / "yfcc100m_dataset"), images=str(folder / "pictures"))


def yfcc_25_bz2(posts, folder):
    for post in posts:
        name = hash_of(post)
        place = folder / "data" / "images" / name[:3] / name[3:6]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.jpg").write_bytes(post["image"])
    with bz2.open(folder / "yfcc100m_dataset-0.bz2", "wt") as file:
        file.write("".join(yfcc_line(post, 25) for post in posts))
    return Source(format="yfcc", uri=str(folder), images=str(folder))


def yfcc_tars(posts, folder):
    half = len(posts) // 2
    tar_of(folder / "a.tar", [(f"some/{post['id']}.jpg", post["image"]) for post in posts[:half]])
    tar_of(folder / "b.tar", [(f"{hash_of(post)}.jpg", post["image"]) for post in posts[half:]])
    (folder / "yfcc100m_dataset.txt").write_text("".join(yfcc_line(post, 25) for post in posts))
    return Source(format="yfcc", uri=str(folder / "yfcc100m_dataset.txt"), images=str(folder / "*.tar"))


WRITERS = {
    write.__name__: write
    for write in (
        parquet,
        parquet_uri,
        parquet_hugging_face,
        parquet_hugging_face_paths,
        parquet_odd_types,
        parquet_captions,
        arrow_file,
        arrow_stream,
        feather,
        lance,
        folder_csv,
        folder_tsv,
        folder_jsonl,
        webdataset,
        webdataset_gz,
        webdataset_txt,
        img2dataset,
        yfcc_23,
        yfcc_25_bz2,
        yfcc_tars,
    )
}
