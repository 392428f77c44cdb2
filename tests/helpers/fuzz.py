"""Fuzzing by coverage (atheris) of what reads other people's bytes: no crash, no hang, no wrong success.

`make fuzz` gives each target 75 seconds; an input that breaks a promise is written to the current folder as crash-....
One target alone, on an input of one's own: python tests/helpers/fuzz.py image crash-0123abcd
"""

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["moe_core", "tomllib", "PIL"]):
    import polars as pl
    from PIL import Image

    from moe_core.data.captions import hashtags_of_text
    from moe_core.data.images import REASONS, Rejected, decode
    from moe_core.data.sources.text_values import tags_of_text
    from moe_core.data.tags import canonical
    from moe_core.recipes import demo
    from moe_core.serving.manifest import read_manifest
    from moe_core.store.artifact import Spec, StageOutput
    from moe_core.store.hashing import with_checksum
    from moe_core.store.store import Store
    from moe_core.study_file import dump_study, load_study

SECONDS = 75
SIZE = 16
FOLDER = Path(tempfile.mkdtemp())


def image(data: bytes) -> None:
    try:
        picture = decode(data, SIZE, min_side=4)
    except Rejected as rejected:
        if rejected.reason not in REASONS:
            raise
        return
    assert len(picture.pixels) == 3 * SIZE * SIZE
    assert min(picture.width, picture.height) >= 4


def tags(data: bytes) -> None:
    text = data.decode("utf-8", "ignore")
    frame = pl.DataFrame({"tag": [text, f" # {text}", *tags_of_text(text)]}, schema={"tag": pl.String})
    for accents in ("keep", "fold"):
        once = frame.select(canonical(pl.col("tag"), accents))
        twice = once.select(canonical(pl.col("tag"), accents))
        assert once.equals(twice), "not idempotent"
        assert once["tag"][0] == once["tag"][1], "'#' and spaces change it"
        assert not (once["tag"] == "").any()
    frame.select(hashtags_of_text(pl.col("tag")))


def study(data: bytes) -> None:
    file = FOLDER / "study.toml"
    file.write_bytes(data)
    try:
        found = load_study(file)
    except ValueError:
        return
    file.write_text(dump_study(found), "utf-8")
    assert load_study(file) == found


def manifest(data: bytes) -> None:
    folder = FOLDER / "fuzzed"
    folder.mkdir(exist_ok=True)
    (folder / "artifact.json").write_bytes(data)
    try:
        found = Store(FOLDER).read(folder)
    except ValueError:
        return
    assert found is not None
    assert data == SEALED or json.loads(data) == json.loads(SEALED), "a changed manifest is believed"


def bundle(data: bytes) -> None:
    """A manifest under a seal that fits, as an attacker writes it."""
    try:
        said = with_checksum(json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return
    folder = FOLDER / "bundle"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(said, indent=1))
    try:
        found = read_manifest(folder)
    except ValueError as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error
        return
    assert sum(found.network.depths) <= 1000
    assert found.experts


def _manifest() -> bytes:
    part = {"file": "a.safetensors", "sha256": "0" * 64, "version": "1", "made_from": {"trunk": "1"}}
    said: dict[str, object] = dict.fromkeys(("router", "gate", "decoder", "vocabulary"), part)
    said |= {"experts": {"e000": part | {"published": True}}, "format": "hardmoe bundle 2", "answer": "mixture_top1"}
    said |= {"router_weight": 0.5, "temperature": 0.1, "branch_at": 0, "image_size": 32, "loss": "softmax"}
    said |= {"precision": "auto", "network": demo().network.model_dump(mode="json")}
    return json.dumps(said).encode()


def _sealed() -> bytes:
    plan = Spec("trunk", None, "1", {"a": 1}, {"b": "c"})
    made = Store(FOLDER).make(plan, lambda folder: StageOutput({"n": [1.5, None, "é"]}))
    return (made.path / "artifact.json").read_bytes()


def _pictures() -> list[bytes]:
    found = []
    for kind, mode in (("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "I;16"), ("GIF", "L"), ("BMP", "RGB")):
        file = io.BytesIO()
        Image.new(mode, (9, 7)).save(file, kind)
        found.append(file.getvalue())
    for options in ({"lossless": True}, {"quality": 1}):
        file = io.BytesIO()
        Image.new("RGBA", (9, 7), "red").save(file, "WEBP", **options)
        found.append(file.getvalue())
    return found


SEALED = _sealed()
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "image": (image, _pictures()),
    "tags": (tags, ["#New York, café\n👍🏽 flickr:a=b ＃x #a#b".encode(), b'["a", "b"]']),
    "study": (study, [dump_study(demo()).encode(), b"[data]\nimage_size = 16\n"]),
    "manifest": (manifest, [SEALED]),
    "bundle": (bundle, [_manifest()]),
}


def main() -> None:
    if len(sys.argv) == 1:
        for name in TARGETS:
            print(f"== {name}, {SECONDS} s", flush=True)
            limits = [f"-max_total_time={SECONDS}", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
            subprocess.run([sys.executable, __file__, name, *limits], check=True)
        return
    name, *arguments = sys.argv[1:]
    target, seeds = TARGETS[name]
    if all(argument.startswith("-") for argument in arguments):
        corpus = FOLDER / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        arguments = [*arguments, str(corpus)]
    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
