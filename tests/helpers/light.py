"""A program that answers with a bundle: `light.py FOLDER IMAGES`. With --only-four it finds torch, numpy, Pillow and
safetensors, what torch brings, and our own modules; with --command it is `hardmoe`, and finds click, too; with --served
it imports what `hardmoe serve` needs, and finds what the extra `serve` installs.
"""

import hashlib
import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path

FOUR = {"torch", "numpy", "PIL", "safetensors"}
OF_TORCH = {"filelock", "fsspec", "functorch", "jinja2", "markupsafe", "mpmath", "networkx", "packaging", "sympy"}
OF_TORCH |= {"torchgen", "typing_extensions"}
OF_SERVE = {"click", "fastapi", "uvicorn", "prometheus_client", "python_multipart", "multipart", "pydantic", "tomlkit"}
OF_SERVE |= {"starlette", "anyio", "idna", "sniffio", "h11", "httptools", "uvloop", "annotated_types", "annotated_doc"}
OF_SERVE |= {"pydantic_core", "typing_inspection", "rich", "pygments", "markdown_it", "mdurl", "opentelemetry"}
OURS = {"moe_core", "pipelines", "assets", "helpers"}


def finds_only(*more):
    """Hides everything else that is installed."""
    known = FOUR | OF_TORCH | OURS | sys.stdlib_module_names | set(more)

    class OnlyThese(PathFinder):
        @classmethod
        def find_spec(cls, fullname, path=None, target=None):
            top = fullname.partition(".")[0]
            return super().find_spec(fullname, path, target) if top in known or top.startswith("_") else None

    sys.meta_path[:] = [OnlyThese if finder is PathFinder else finder for finder in sys.meta_path]


def answers(folder, images):
    """Hashes of probabilities and embeddings, bit for bit, and the experts, of all image files."""
    import numpy as np

    import moe_core as hm
    from moe_core.serving.bundle import Bundle
    from moe_core.serving.files import decoded, entries_of
    from moe_core.serving.routed import routed
    from moe_core.training.infer import features_of
    from moe_core.training.posts import ImagesInMemory

    bundle = Bundle(Path(folder))
    files = [Path(name) for name, skipped in entries_of(Path(images)) if not skipped]
    batches = list(decoded(files, bundle.image_size, 1))
    pixels = np.concatenate([pixels_BHWC for _, pixels_BHWC in batches])
    (answer,) = routed(bundle, [pixels])
    posts = ImagesInMemory(pixels)
    expert_N = bundle.gate.assign(features_of(bundle.router, posts, bundle.precision).numpy())
    embedding_ND = bundle.features_by_expert(expert_N, posts)
    arrays = {"pixels": pixels, "p": answer.probabilities_BV.numpy(), "embedding": embedding_ND.numpy()}
    return {
        **{name: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for name, array in arrays.items()},
        "experts": answer.experts,
        "shapes": [list(array.shape) for array in arrays.values()],
        "errors": [error for files, _ in batches for _, error in files if error],
        "tags": [prediction.tags for prediction in hm.open(folder).predict(files)],
        "loaded": sorted({"pydantic", "polars", "pyarrow", "lance", "simplejpeg", "dagster"} & sys.modules.keys()),
    }


if __name__ == "__main__":
    if sys.argv[1] == "--command":
        finds_only("click")
        from pipelines.cli.main import main

        main(sys.argv[2:], prog_name="hardmoe")
    if sys.argv[1] == "--served":
        finds_only(*OF_SERVE)
        import pipelines.cli.serve  # noqa: F401

        sys.exit()
    if sys.argv[1] == "--only-four":
        finds_only()
        del sys.argv[1]
    print(json.dumps(answers(*sys.argv[1:3])))
