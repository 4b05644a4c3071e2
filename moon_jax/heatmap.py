"""Shows what an embedding looks at: `python -m moon_jax.heatmap --model=DIR --input=records.jsonl --output=DIR`.

For each record the attention of its embedding to the cells of its pictures and to the tokens of its text is computed
twice, without the text and with it (the paper's Fig. 9). The embedding is the mean over all tokens of a record, so its
attention is the mean over their rows of the attention matrix, in every layer and head of the language model.

The input is a file with one JSON record a line, as `moon_jax.embed` takes it (id, title, images, boxes ...), or a data
set in any format that training reads (--format, or a folder): then its listings, or with --kind=query the queries of
its test sets, are taken. The first --limit of them are shown, or those of --ids.

The output folder receives for record 7
  0007.png           pictures and crops without and with text, the text with its tokens coloured, shares by role
  0007_layers.png    with --split=layers (or heads): the first picture, one map for each chosen layer (or head)
  0007.npz           the weights of all layers and heads
and heatmaps.json with the values that are drawn, settings.json with what made the weights.

--layers, --heads, --scale and --split only choose what is drawn of the weights: with another choice the same command
draws anew and computes nothing. Killed, it goes on with the records that are missing. If the model, the input or a
setting of the weights has changed since, it refuses.

    python -m moon_jax.heatmap --model=runs/shop --input=items.jsonl --output=out/heat --limit=20
    python -m moon_jax.heatmap --model=runs/demo --input=runs/demo/catalogue --ids=catalogue:000003 --output=out/heat
    python -m moon_jax.heatmap --model=DIR --input=items.jsonl --output=out/heat --layers=18-35 --split=layers
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags, logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from moon_jax.command_flags import CommandFlags
from moon_jax.config import ConfigError, DataConfig
from moon_jax.config_rules import FORMATS
from moon_jax.data.documents import KINDS
from moon_jax.data.embed_records import Reader
from moon_jax.data.records import DataError
from moon_jax.data.sources import guess
from moon_jax.data.store import open_store
from moon_jax.data.tokenizer import TokenizerError
from moon_jax.encoder import DTYPES, from_pretrained, with_max_pixels
from moon_jax.evaluation.heat import cases as heat_cases
from moon_jax.evaluation.heat.cases import Case
from moon_jax.evaluation.heat.draw import SPLITS, Drawing
from moon_jax.evaluation.heat.folder import INDEX, HeatmapFolder
from moon_jax.evaluation.heat.maps import AttentionMap, AttentionMapper
from moon_jax.evaluation.heat.values import SCALES, parse_numbers
from moon_jax.models.attention_map import METHODS
from moon_jax.parallel.mesh import make_mesh, parse_mesh
from moon_jax.parallel.processes import meet, together
from moon_jax.training.embedder import EmbeddingError
from moon_jax.training.pretrained import Pretrained, open_pretrained
from moon_jax.weights.source import WeightsError, fingerprint
from moon_jax.weights.spec import describe

_MISTAKES = (ConfigError, DataError, EmbeddingError, TokenizerError, WeightsError, OSError)


def main(argv: list[str]) -> None:
    """Reads the flags and runs; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are given as --name=value")
    logging.set_verbosity(logging.WARNING)
    try:
        with together(*_MISTAKES):
            run()
    except _MISTAKES as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run() -> None:
    """Makes the heat maps that the flags ask for; see the module."""
    found = open_pretrained(MODEL.value)
    if MAX_PIXELS.value is not None:
        found = with_max_pixels(found, MAX_PIXELS.value)
    text = found.spec.model.text
    layers = parse_numbers(LAYERS.value, text.num_hidden_layers, "layers")
    heads = parse_numbers(HEADS.value, text.num_attention_heads, "heads")
    if METHOD.value == "rollout":
        if (LAYERS.value, HEADS.value, SPLIT.value) != ("all", "all", "no"):
            raise ConfigError(
                "--method=rollout goes through all layers and heads: leave out --layers, --heads, --split"
            )
        layers, heads = (0,), (0,)  # of the one map
    mesh = make_mesh(parse_mesh(MESH.value))
    meet(mesh)
    cases, digest = _cases(found)
    folder = HeatmapFolder(pathlib.Path(OUTPUT.value).expanduser().absolute(), _identity(found, digest))
    missing = [case for case in cases if not folder.has(case.number)]
    if jax.process_count() > 1:  # all have read what is there, before one of them writes
        multihost_utils.sync_global_devices("output")
    if jax.process_index() == 0:
        folder.begin()
    if missing:
        _compute(found, mesh, missing, folder)
    if jax.process_index() == 0:
        drawing = Drawing(
            found.load_tokenizer(), found.spec.data, found.spec.model.vision, found.spec.model.attention == "causal",
            text.num_hidden_layers if METHOD.value == "rollout" else 0, layers, heads, SCALE.value, SPLIT.value,
        )  # fmt: skip
        folder.remove_pictures()
        bar = tqdm(cases, unit="record", desc="drawing")
        folder.write_index(drawing.about(), [drawing.draw(case, folder.read_maps(case.number), folder) for case in bar])
        print(f"{len(cases)} records: {folder.path / INDEX}")


def _cases(found: Pretrained) -> tuple[list[Case], str]:
    """Returns what is to be shown, and a digest of the input."""
    path = pathlib.Path(INPUT.value).expanduser().absolute()
    data = found.spec.data
    if not FORMAT.value and not path.is_dir():
        folder = pathlib.Path(IMAGE_FOLDER.value).expanduser().absolute() if IMAGE_FOLDER.value else path.parent
        store = open_store(str(pathlib.Path(IMAGE_STORE.value).expanduser().absolute())) if IMAGE_STORE.value else None
        cases, digest = heat_cases.of_records(path, Reader(KIND.value, data, folder, store))
    elif KIND.value == "plain":
        raise ConfigError("--kind=plain is for a file of records; of a data set take --kind=item or --kind=query")
    else:
        given = DataConfig(
            path=str(path), format=FORMAT.value or guess.guess(path)[0].format, image_folder=IMAGE_FOLDER.value,
            image_store=IMAGE_STORE.value, boxes=BOXES.value, parts=tuple(PARTS.value),
        )  # fmt: skip
        cases, digest = heat_cases.of_dataset(given, data, KIND.value)
    return heat_cases.chosen(cases, IDS.value, LIMIT.value), digest


def _compute(found: Pretrained, mesh: Mesh, cases: Sequence[Case], folder: HeatmapFolder) -> None:
    """Writes the weights of the cases, each as soon as it has all its conditions."""
    encoder = from_pretrained(found, mesh, DTYPE.value, progress=True)
    mapper = AttentionMapper(encoder.config, mesh, encoder.tokenizer, METHOD.value)
    asked = [(case, name, document) for case in cases for name, document in case.conditions().items()]
    made: dict[int, dict[str, AttentionMap]] = {case.number: {} for case in cases}
    main_process = jax.process_index() == 0
    with tqdm(total=len(asked), unit="document", desc="attention", disable=not main_process) as bar:
        for number, attention in mapper.maps(encoder.params, [document for *_, document in asked], BATCH_SIZE.value):
            case, name, _ = asked[number]
            made[case.number][name] = attention
            if made[case.number].keys() == case.conditions().keys():
                maps = made.pop(case.number)
                if main_process:
                    folder.write_maps(case.number, maps)
            bar.update()


def _identity(found: Pretrained, digest: str) -> dict[str, Any]:
    """Returns all that decides the weights but for rounding, under flat names."""
    described = describe(found.spec)
    return {
        "weights": fingerprint(found.source),
        "tokenizer": found.load_tokenizer().fingerprint,
        **{f"{group}.{name}": value for group in ("model", "moe", "data") for name, value in described[group].items()},
        "input": digest,
        "image_store": IMAGE_STORE.value,
        "boxes": BOXES.value,
        "kind": KIND.value,
        "method": METHOD.value,
        "dtype": DTYPE.value or found.spec.model.dtype,
    }


FLAGS = CommandFlags(__name__)
MODEL = FLAGS.string("model", None, "folder of the model: Hugging Face, converted, or a training run's")
INPUT = FLAGS.string("input", None, "file with one JSON record a line, or a data set as config.data.path")
OUTPUT = FLAGS.string("output", None, "folder for the pictures, the weights and the index")
FORMAT = FLAGS.enum(
    "format", None, FORMATS, "of a data set; a folder's is guessed, a file is one of records without it"
)
KIND = FLAGS.enum(
    "kind", "item", KINDS, "item, query: with the model's prompt for these; plain: the record as it stands"
)
LIMIT = FLAGS.integer("limit", 16, "so many records from the start, where --ids names none", lower_bound=1)
IDS = FLAGS.list("ids", [], "ids of the records to show, of all that the input has")
LAYERS = FLAGS.string("layers", "all", 'layers to average: "all", "35" or "18-26,35"; the first is 0')
HEADS = FLAGS.string("heads", "all", "heads to average, in the same form")
SPLIT = FLAGS.enum("split", "no", SPLITS, "also draw the first picture once for each of the layers or heads")
SCALE = FLAGS.enum(
    "scale", "relative", SCALES, "of the colours: share of the attention, or relative to attention that is even"
)
METHOD = FLAGS.enum("method", "attention", METHODS, "attention of each layer, or rollout through all of them")
PARTS = FLAGS.list("parts", [], "names of the sets in a data set's folder; by default all that are there")
BOXES = FLAGS.string("boxes", "", "file of boxes for a data set (moon_jax.detect)")
IMAGE_FOLDER = FLAGS.string("image_folder", "", "where relative paths of pictures start; by default the input's folder")
IMAGE_STORE = FLAGS.string("image_store", "", "packed image store that holds the pictures")
BATCH_SIZE = FLAGS.integer("batch_size", 4, "documents of a batch on one device (one batch shard)", lower_bound=1)
DTYPE = FLAGS.enum("dtype", None, DTYPES, "of the weights and the computation; by default the checkpoint's")
MESH = FLAGS.string("mesh", "", "sizes of mesh axes, e.g. fsdp=8; by default a whole model on each device")
MAX_PIXELS = FLAGS.integer("max_pixels", None, "larger pictures are scaled down to it; by default the model's")

if __name__ == "__main__":
    flags.mark_flags_as_required(["model", "input", "output"])
    FLAGS.run(main)
