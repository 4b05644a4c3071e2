"""Opening a model, whatever kind of folder it is in: one door for training, embedding and conversion."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

from moon_jax.config import DataConfig, GroundingConfig
from moon_jax.config_backbone import BACKBONES
from moon_jax.data import tokenizer
from moon_jax.data.strict_json import unique_json
from moon_jax.hf.config import CheckpointInfo, read_config, read_moe
from moon_jax.hf.load import HFSource
from moon_jax.models import moon
from moon_jax.training.checkpoint import Checkpoints
from moon_jax.training.manifest import MANIFEST, CheckpointError
from moon_jax.training.saved_params import SavedParams
from moon_jax.weights.folder import MOON_JSON, PREPROCESSOR, ModelFolder, check_files, read_description, sha256
from moon_jax.weights.source import LM_HEAD, Source, WeightsError, check, named
from moon_jax.weights.spec import CHAT, ModelSpec, describe, parse, read_preprocessor
from moon_jax.weights.tensors import INDEX, SINGLE, regular_file

CHECKPOINTS = "checkpoints"  # in the folder of a training run
_PROCESSOR = "processor_config.json"  # where transformers 5 saves the pictures' settings of a whole processor

# Of a model that was not trained on products, and so has no limits of its own: what a listing rarely goes beyond.
_UNTRAINED = DataConfig(
    prompt=CHAT, query_prompt=CHAT, images_per_item=8, description=True, title_tokens=512, category_tokens=64,
    attribute_tokens=256,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pretrained(contextlib.AbstractContextManager):
    """A model that was opened, and a context manager that closes its files; nothing large is read before it is asked.

    Attributes:
        spec: what the model is. Of a Hugging Face folder: dense (or with the experts that we exported), causal, the
            pixels of its preprocessor_config.json, one turn of Qwen's chat as the prompt; computes in bfloat16 if that
            is its dtype.
        source: the weights, checked against the sizes. Those of a Hugging Face or model folder hold files open.
        tokenizer_folder: where tokenizer.json should be; `load_tokenizer` reads and checks it.
        kind: "hf", "model" or "training".
        origin: gives where the weights come from, as weights/card.py shows it; reads every file of a Hugging Face
            folder for its digest, which may take a while.
        info: of a Hugging Face folder.
    """

    spec: ModelSpec
    source: Source
    tokenizer_folder: pathlib.Path
    kind: str
    origin: Callable[[], dict[str, Any]]
    info: CheckpointInfo | None = None

    def __exit__(self, *exception) -> None:
        if isinstance(self.source, contextlib.AbstractContextManager):
            self.source.__exit__(*exception)

    def load_tokenizer(self) -> tokenizer.Tokenizer:
        """Returns the model's tokenizer.

        Raises:
            TokenizerError: there is none, it splits the vision tokens, it has ids beyond the token table, or other ids
                than config.json.
        """
        words = tokenizer.load(self.tokenizer_folder, self.spec.model.text.vocab_size)
        if self.info is not None:
            ids = [
                ("image_token_id", self.info.image_token_id, words.image_pad),
                ("vision_start_token_id", self.info.vision_start_token_id, words.vision_start),
                ("vision_end_token_id", self.info.vision_end_token_id, words.vision_end),
            ]
            wrong = [
                f"{name} is {given}, the tokenizer has {found}"
                for name, given, found in ids
                if given not in (None, found)
            ]
            if wrong:
                raise tokenizer.TokenizerError(
                    f"{self.tokenizer_folder} has config.json and tokenizer.json of two models: {', '.join(wrong)}"
                )
        return words


def open_pretrained(path: str | os.PathLike[str], verify: bool = False) -> Pretrained:
    """Returns the model in a folder; its sizes are checked, its weights are not yet read.

    Every process of a run must call it (the newest checkpoint is chosen together).

    Args:
        path: a Hugging Face folder of Qwen2.5-VL, a model folder of ours, the folder of a training run or its
            checkpoints/ (the newest whole step is taken), or one step in there.
        verify: compare the digests of a model folder. Those of training steps are always compared; a folder from
            elsewhere has none.

    Raises:
        WeightsError: none of these, or it cannot be used; names everything that is wrong with it.
    """
    folder = pathlib.Path(path).expanduser()
    try:
        opened = _open(folder, verify)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    shapes = moon.abstract_params(opened.spec.model, opened.spec.moe)
    with contextlib.ExitStack() as stack:
        stack.push(opened)
        check(opened.source, {name: shape.shape for name, shape in named(shapes).items()})
        stack.pop_all()
    return opened


def _open(folder: pathlib.Path, verify: bool) -> Pretrained:
    has = lambda name: (folder / name).exists()  # noqa: E731
    steps = folder / CHECKPOINTS if (folder / CHECKPOINTS).is_dir() else folder
    if has(MANIFEST):
        return _training(folder, SavedParams(folder))
    if has(MOON_JSON) and not has("config.json"):
        return _model(folder, verify)
    if has(SINGLE) or has(INDEX):
        return _hf(folder, verify)
    if steps is not folder or (folder.is_dir() and any(p.name.isdigit() and p.is_dir() for p in folder.iterdir())):
        with Checkpoints(steps) as checkpoints:
            step = checkpoints.latest()
        if step is None:
            raise WeightsError(f"{steps} has no finished checkpoint yet")
        step_folder = steps / f"{step:08d}"
        return _training(step_folder, SavedParams(step_folder, verify=False))
    if has("config.json"):
        return _hf(folder, verify)
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing" if folder.is_dir() else "no folder"
    raise WeightsError(
        f"{folder} holds no model (there is {there}). Looked for: config.json with {SINGLE} or {INDEX} (Hugging Face), "
        f"{MOON_JSON} (a model folder), {CHECKPOINTS}/ (a training run), numbered folders (its checkpoints), "
        f"{MANIFEST} (one of them)"
    )


def _model(folder: pathlib.Path, verify: bool) -> Pretrained:
    source = ModelFolder(folder, verify)
    described = source.description

    def origin() -> dict[str, Any]:
        digests = {name: entry["sha256"] for name, entry in described.files.items()}
        return {"kind": "model", "name": _name(folder), "files": digests, "origin": described.origin}

    return Pretrained(described.spec, source, folder, "model", origin)


def _training(folder: pathlib.Path, source: SavedParams) -> Pretrained:
    if not (folder / MOON_JSON).exists():
        raise WeightsError(
            f"{folder} has no {MOON_JSON}: the checkpoint was saved without a description of its model and a tokenizer"
        )
    described = read_description(folder)

    def origin() -> dict[str, Any]:
        start = described.origin
        start = start.get("origin", {}) if start.get("kind") == "training" else start
        run = folder.parent.parent if folder.parent.name == CHECKPOINTS else folder.parent
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        step = source.manifest["step"]
        return {"kind": "training", "name": _name(run), "step": step, "files": {MANIFEST: digest}, "origin": start}

    return Pretrained(described.spec, source, folder, "training", origin)


def _hf(folder: pathlib.Path, verify: bool) -> Pretrained:
    model, info = read_config(folder)
    moe = read_moe(folder)
    dtype = "bfloat16" if info.dtype == "bfloat16" else "float32"
    model = dataclasses.replace(model, dtype=dtype)
    said = GroundingConfig(coordinates=BACKBONES[model.vision.kind].coordinates)
    spec = ModelSpec(model, moe, dataclasses.replace(_UNTRAINED, grounding=said), info.tied)
    before: dict[str, Any] = {}
    if (folder / MOON_JSON).exists():
        described = read_description(folder)
        check_files(folder, described.files, verify)
        spec, before = _agreed(described.spec, spec, folder), described.origin
    elif (folder / PREPROCESSOR).exists():
        spec = read_preprocessor(_read_json(folder, PREPROCESSOR), spec, str(folder / PREPROCESSOR))
    elif (folder / _PROCESSOR).exists():
        settings = _read_json(folder, _PROCESSOR).get("image_processor", {})
        if isinstance(settings, dict):
            spec = read_preprocessor(settings, spec, str(folder / _PROCESSOR))
    spec = parse(describe(spec), str(folder))  # the rules of a config, which what comes from elsewhere may break
    source = HFSource(folder, spec.model, spec.moe, info.tied)
    if LM_HEAD in source.leaves:  # another matrix than the embedding, whatever config.json says
        spec = dataclasses.replace(spec, tied=False)

    def origin() -> dict[str, Any]:
        names = [
            p.name for p in sorted(folder.iterdir()) if p.name.endswith((".safetensors", ".safetensors.index.json"))
        ]
        found = [n for n in ("config.json", *names, "tokenizer.json") if (folder / n).exists()]
        digests = {name: sha256(regular_file(folder, name)) for name in found}
        above = {"origin": before} if before else {}
        return {"kind": "hf", "name": _name(folder), "files": digests, **above}

    return Pretrained(spec, source, folder, "hf", origin, info)


def _agreed(ours: ModelSpec, theirs: ModelSpec, folder: pathlib.Path) -> ModelSpec:
    """Returns the spec of moon.json in a folder that we exported, if config.json says the same of the model."""
    a, b = describe(ours), describe(theirs)
    a["model"]["dtype"] = b["model"]["dtype"]  # config.json has that of the weights
    pairs = [("model.text", a["model"].pop("text"), b["model"].pop("text"))]
    pairs += [("model.vision", a["model"].pop("vision"), b["model"].pop("vision"))]
    pairs += [("model", a["model"], b["model"])]
    pairs += [("moe", a["moe"], b["moe"])] if ours.moe.experts or theirs.moe.experts else []
    pairs += [("", {"tied": a["tied"]}, {"tied": b["tied"]})]
    problems = [
        f"{group}.{name} is {mine[name]!r} in {MOON_JSON} and {other[name]!r} in config.json".removeprefix(".")
        for group, mine, other in pairs
        for name in mine
        if mine[name] != other[name]
    ]
    if problems:
        raise WeightsError(f"{folder} is two models:\n" + "\n".join(f"  - {p}" for p in problems))
    return ours


def _read_json(folder: pathlib.Path, name: str) -> dict[str, Any]:
    try:
        values = unique_json(regular_file(folder, name).read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / name} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{folder / name} is not a JSON object")
    return values


def _name(folder: pathlib.Path) -> str:
    """Returns what a folder is called, without saying where it is on this machine."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):  # a download cache
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/") + "@" + folder.name
    return folder.resolve().name
