"""The parity table: ours against transformers on random models, every number computed here and now by both.

    python benchmarks/parity.py                       all rows: minutes on two cores
    python benchmarks/parity.py --only=padded         rows and parts whose name holds this text
    python benchmarks/parity.py --markdown            the tables as Markdown

Needs the extra [torch]. The comparisons are those of tests/parity: f32 errors are max |difference| over the rms of what
transformers gives ("pixels" and "positions": the difference itself), "wrong tokens" counts over all documents, twice
(padded on the left and on the right), "bf16 cosine" is the smallest between pooled embeddings.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"

import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

from absl import app, flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "parity"), str(ROOT / "tests")]

_ONLY = flags.DEFINE_string("only", "", "Only models and tables whose name holds this text.")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "Print Markdown tables.")

Row = dict[str, str]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"unexpected arguments: {' '.join(argv[1:])}")
    import jax
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    jax.config.update("jax_default_matmul_precision", "highest")
    print(f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
    for title, rows in tables().items():
        rows = {name: make for name, make in rows.items() if _ONLY.value in f"{title}: {name}"}
        if rows:
            show(title, rows)


def tables() -> dict[str, dict[str, Callable[[pathlib.Path], Row]]]:
    """Returns title -> name of the row -> what computes it in a folder."""
    import listings
    import measures
    from cases import CASES, REAL_WIDTHS

    wide = [(4, (140, 168), 7), (20,), (1, (28, 84), 2)]
    models = {name: (lambda folder, s=sizes: forward(measures.prepare(s, folder))) for name, sizes in CASES.items()}
    models["3B widths, one layer"] = lambda folder: forward(measures.prepare(REAL_WIDTHS, folder, documents=wide))
    models["12 kinds of image, Chinese, English"] = lambda folder: forward(listings.prepare(folder))
    return {
        "Forward and decoding": models,
        "Gradients of every parameter": {
            "embeddings": lambda folder: backward(folder, "embeddings", True, (1, 1, 1, 1)),
            "next-token loss, tied head": lambda folder: backward(folder, "tokens", True, (1, 1, 1, 1)),
            "next-token loss, untied head": lambda folder: backward(folder, "tokens", False, (1, 1, 1, 1)),
            "next-token loss, data 2 x fsdp 2 x tensor 2": lambda folder: backward(
                folder, "tokens", False, (2, 2, 1, 2)
            ),
        },
        "Greedy tokens on meshes of 8 devices": {
            "data 2 x fsdp 2 x tensor 2": lambda folder: on_mesh(folder, (2, 2, 1, 2)),
            "fsdp 2 x expert 2 x tensor 2": lambda folder: on_mesh(folder, (1, 2, 2, 2)),
            "data 8": lambda folder: on_mesh(folder, (8, 1, 1, 1)),
        },
        "Guided MoE in bfloat16 against its float32": {"8 experts, top 2": mixture},
    }


def forward(pair) -> Row:
    import measures

    row = {name: f"{error:.0e}" for name, error in (measures.packed(pair) | measures.padded(pair)).items()}
    row["wrong tokens"] = f"{measures.wrong_tokens(pair)} of {2 * measures.NEW_TOKENS * len(pair.documents)}"
    return row | {"bf16 cosine": f"{measures.bfloat16_cosine(pair):.5f}"}


def backward(folder: pathlib.Path, of: str, tied: bool, mesh: tuple[int, int, int, int]) -> Row:
    import gradients
    import measures
    from cases import Sizes
    from meshes import mesh_of

    pair = measures.prepare(Sizes(window=84, tied=tied), folder)
    if of == "embeddings":
        errors = gradients.of_embeddings(pair)
    else:
        errors = gradients.of_next_tokens(pair, (6, 5, 9, 1, 0), mesh_of(mesh))
    worst = max(errors, key=errors.__getitem__)
    return {
        "parameters": str(len(errors) - ("loss" in errors)),
        "largest error": f"{errors[worst]:.0e}",
        "in the parameter": worst,
    }


def on_mesh(folder: pathlib.Path, mesh: tuple[int, int, int, int]) -> Row:
    import measures
    import oracle
    import ours
    from cases import Sizes
    from meshes import mesh_of

    pair = measures.prepare(Sizes(tied=False), folder)
    want = [oracle.continue_one(pair.reference, document, measures.NEW_TOKENS) for document in pair.documents]
    (got,) = ours.generate(pair.ours, pair.encoded, measures.NEW_TOKENS, mesh=mesh_of(mesh))
    wrong = sum(a != b for g, w in zip(got, want, strict=True) for a, b in zip(g, w, strict=True))
    return {"wrong tokens": f"{wrong} of {sum(map(len, want))}"}


def mixture(folder: pathlib.Path) -> Row:
    import measures
    from cases import CASES

    from moon_jax.config import MoEConfig

    pair = measures.prepare(CASES["full everywhere but last"], folder)
    replayed, free, moved = measures.moe_cosine(pair, MoEConfig(experts=8, top_k=2))
    return {
        "cosine, routing replayed": f"{replayed.min():.5f}", "cosine, own routing": f"{free.min():.5f}",
        "tokens that it sends elsewhere": f"{moved:.1%}",
    }  # fmt: skip


def show(title: str, rows: dict[str, Callable[[pathlib.Path], Row]]) -> None:
    """Prints the rows of a table as they come."""
    print(f"\n### {title}" if _MARKDOWN.value else f"\n{title}", flush=True)
    width = max(map(len, rows))
    for number, (name, make) in enumerate(rows.items()):
        start = time.time()
        with tempfile.TemporaryDirectory() as folder:
            row = make(pathlib.Path(folder))
        row["seconds"] = f"{time.time() - start:.0f}"
        columns = {header: max(len(header), 9) for header in row}
        if number == 0:
            line([" " * width, *columns], [width, *columns.values()])
            if _MARKDOWN.value:
                line(["---"] * (len(columns) + 1), [width, *columns.values()])
        line([name, *row.values()], [width, *columns.values()])


def line(cells: list[str], widths: list[int]) -> None:
    text = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    print("| " + " | ".join(text) + " |" if _MARKDOWN.value else "  ".join(text), flush=True)


if __name__ == "__main__":
    app.run(main)
