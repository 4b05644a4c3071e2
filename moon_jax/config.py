"""Every setting of a run as frozen dataclasses, and the one door through which a ConfigDict becomes them.

`defaults()` gives the locked `ConfigDict` that the files in `configs/` change and the command line overrides;
`resolve(config_dict)` turns it into a `Config`, once, and reports every mistake in plain words.
"""

import dataclasses
import difflib
import enum
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from moon_jax.config_backbone import TextConfig, VisionConfig


class ConfigError(ValueError):
    """A setting that cannot work; the message names it and says what to do."""


class Role(enum.IntEnum):
    """What a token stands for (paper 3.1): it decides which guided expert the token may visit."""

    PADDING = 0
    OTHER = 1  # template and separators
    IMAGE = 2
    CORE = 3  # a visual token of the core crop
    TITLE = 4
    CATEGORY = 5
    ATTRIBUTE = 6


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone. `dtype` is the compute type ("float32" or "bfloat16"); parameters are float32 in training."""

    path: str = ""  # folder of a checkpoint to start from; its sizes then hold. Empty = random weights
    vision: VisionConfig = dataclasses.field(default_factory=VisionConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    attention: str = "causal"  # [ours] as in the generative model; or "bidirectional"
    attention_impl: str = "xla"  # "xla" | "splash" (TPU) | "triton", "cudnn" (GPU)
    dtype: str = "float32"
    remat: str = "layer"  # "none" | "layer": recompute, but keep what dispatch brought over the mesh | "full": that too


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """The guided mixture of experts (paper 3.1); `experts = 0` keeps the plain FFN (the no_moe ablation).

    Capacities are a choice of training: evaluation and embedding are always dropless.
    """

    experts: int = 8
    top_k: int = 2
    strategy: str = "slots"  # a key of STRATEGIES in moe/dispatch.py
    placement: str = "spread"  # whole experts, N / expert axis a shard | "split": a slice of every expert on each shard
    capacity_factor: float = 0.0  # places of a general expert over its even share of tokens; 0 = dropless
    guided_capacity: float = 0.0  # places of a guided expert as a share of all tokens; 0 = dropless
    gate: str = "softmax_active"  # [ours] weights sum to 1; "softmax_all" is the paper's wording
    guided: str = "add"  # a category token visits the category expert too; "exclusive": only that one
    balance_loss: float = 0.0
    z_loss: float = 0.0
    router_noise: float = 0.0  # deviation of the noise on the logits that choose the experts, in training
    frozen_router_steps: int = 0  # the router does not learn before this step: experts that start as copies drift apart
    upcycle_noise: float = 0.0  # added to the experts copied from a dense FFN, relative to the weight's deviation


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is learned: the contrastive loss (paper 3.2), or to find products in pictures."""

    kind: str = (
        "contrastive"  # or "next_token": answers to the question of config.data.grounding; all below is not used
    )
    temperature: float = 0.05
    ring_batches: int = 2  # k: past global batches whose positives and hard negatives stay as negatives
    ring_warmup_ratio: float = 0.0  # nothing is kept in this share of the steps: a model drawn at random moves too fast
    mask_false_negatives: bool = True
    group_size: int = 0  # > 0: negatives only from the query's own group of this many triplets (no_neg ablation)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """[ours] What stands around and between the segments of a document; all of it has the role OTHER."""

    prefix: str = ""
    separator: str = "\n"
    suffix: str = ""


@dataclasses.dataclass(frozen=True)
class GroundingConfig:
    """[ours] How a generative model is asked where the product is, and how it answers (paper 3.1)."""

    system: str = "You are a helpful assistant."  # the message before the question; "" = none
    prompt: str = 'Locate the product that is for sale: "{title}". Output its bounding box in JSON format.'
    untitled: str = "the main product"  # in the place of a missing title
    answer: str = '```json\n[\n\t{"bbox_2d": {box}, "label": "product"}\n]\n```'  # what training teaches to say
    coordinates: str = "absolute"  # pixels of the picture as the model sees it | "relative": thousandths of its sides
    max_new_tokens: int = 128  # an answer is cut there


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from and how they become documents, pixels and packed batches."""

    path: str = ""  # folder or file; for format "catalogue", empty draws one in the work folder
    format: str = "jsonl"  # a key of FORMATS in config_rules.py; `python -m moon_jax.describe` guesses it
    image_folder: str = ""  # where relative paths of pictures start; empty = the folder of the records
    parts: tuple[str, ...] = ()  # names of the sets in the folder, e.g. ("grocery", "luma"); () = all that are there
    catalogue_products: int = 2000  # size of the drawn catalogue
    mbe_keys: tuple[tuple[str, str], ...] = ()  # (our name, their key) pairs that override the guessed MBE key map
    image_store: str = ""  # a packed image store (moon_jax.pack_images, moon_jax.download) with the pictures
    boxes: str = ""  # a file of moon_jax.detect: the boxes of products, for pictures that came without
    columns: tuple[tuple[str, str], ...] = ()  # (our name, their column) pairs for format "table"
    tokenizer: str = ""  # a Hugging Face tokenizer folder; empty trains a small BPE on the training texts
    unseen_share: float = 0.2  # share of the products (by hash of their id) that training never sees
    crop: bool = True  # feed the core crop beside the whole picture (paper 3.1); False = the no_crop ablation
    crop_margin: float = 0.05  # of the box's width and height, added on every side
    images_per_item: int = 1
    min_pixels: int = 56 * 56
    max_pixels: int = 448 * 448
    max_aspect: float = (
        16.0  # a longer strip is padded with white to this ratio, or it would set the size of every slot
    )
    augment: bool = False  # random crop, flip and light changes of the training pictures, a function of (seed, step)
    augment_area: float = 0.6  # least share of the picture that a random crop keeps
    own_picture: float = 0.0  # share of image queries whose picture is another view of the listing's own
    own_box: float = 1.0  # least share of the product's width and height in such a view; below 1 some are close-ups
    title_dropout: float = 0.0  # share of triplets whose positive and negative have no title beside their pictures
    description: bool = False  # append an item's description to its title
    title_tokens: int = 96  # longer segments are cut, and counted
    category_tokens: int = 48
    attribute_tokens: int = 96
    aspect_dropout: float = 0.5  # share of triplets whose category and attribute texts are left out
    aspect_only: float = 0.05  # share of triplets whose positive is category and attribute texts only
    modality_mix: tuple[int, int, int] = (12, 3, 2)  # query: image, text, image + text (paper 5.1)
    row_tokens: int = 0  # tokens of a packed row of a training batch; 0 = the longest possible document
    rows: int = 0  # rows of a shard of a training batch; 0 = enough for every possible one
    row_share: float = 1.0  # with rows = 0: rows as a share of the worst case; a batch of more takes the worst case
    image_slots: int = 0  # picture slots of a shard of a training batch; 0 = enough for every possible one
    slot_share: float = 1.0  # with image_slots = 0: slots as a share of the worst case, like row_share
    workers: int = 0  # processes that prepare batches; 0 = threads of this process
    prefetch: int = 2  # batches prepared ahead
    on_error: str = "raise"  # "raise" | "skip": what a missing or broken picture or record does
    check_pictures: bool = True  # read every picture's header before training starts
    max_skipped_share: float = 0.01  # more than this share skipped stops the run
    prompt: PromptConfig = PromptConfig()  # of listings and candidate texts
    query_prompt: PromptConfig = PromptConfig()
    grounding: GroundingConfig = GroundingConfig()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one axis may be -1: all the devices that the others leave."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop and the optimizer: AdamW (or Muon), warm-up, cosine (paper 5.1)."""

    steps: int = 1000
    seed: int = 0
    batch_size: int = 32  # triplets per step, over all devices
    optimizer: str = "adamw"  # the paper's | "muon": for hidden matrices, from scratch
    lr: float = 1e-5
    warmup_ratio: float = 0.05
    weight_decay: float = 0.01
    freeze: str = ""  # comma-joined of "vision", "llm", "backbone" (all but experts, router and projector)
    b1: float = 0.9
    b2: float = 0.98
    clip_norm: float = 1.0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2

    @property
    def frozen(self) -> tuple[str, ...]:
        """The words of `freeze`."""
        return tuple(word.strip() for word in self.freeze.split(",") if word.strip())


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training and at its end."""

    every: int = 500  # steps; 0 = only at the end
    ks: tuple[int, ...] = (1, 5, 10)
    batch_documents: int = 64  # documents per shard and forward pass
    max_queries: int = 2000  # per set and during training; the end evaluates all
    metric: str = "unseen/image/R@1"  # chooses the best checkpoint; "unseen/query/IoU" with loss.kind "next_token"
    color_histogram: bool = False  # score the colour-histogram baseline beside the model
    tasks: tuple[str, ...] = ("retrieval",)  # of "retrieval", "classification", "attributes"
    gallery: str = "listings"  # all that a part lists | "test": the positives and hard negatives of the test queries
    candidates: str = "aspect"  # role of candidate texts: "aspect": CATEGORY or ATTRIBUTE | "title"
    bootstrap_samples: int = 1000  # resamplings behind the 95% intervals; 0 = no intervals
    expected_queries: int = 0  # test queries that the data must have; 0 = any number


@dataclasses.dataclass(frozen=True)
class Config:
    """All of a run."""

    name: str = "moon"
    model: ModelConfig = ModelConfig()
    moe: MoEConfig = MoEConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


def _to_dict(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as nested plain dicts (tuples stay tuples)."""
    return _to_dict(config)


def defaults() -> ml_collections.ConfigDict:
    """Returns the default config as a locked ConfigDict: the start of every file in `configs/`."""
    return ml_collections.ConfigDict(to_dict(Config())).lock()


def _build(cls: type, values: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(values, Mapping):
        problems.append(f"config.{path} must be a group of settings, got {values!r}")
        return cls()
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    out, before = {}, len(problems)
    for key, value in values.items():
        name = f"{path}.{key}" if path else key
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(fields)}"
            problems.append(f"config.{name} does not exist{hint}")
        elif dataclasses.is_dataclass(hints[key]):
            out[key] = _build(hints[key], value, name, problems)
        else:
            out[key] = _coerce(value, hints[key], name, problems)
    return cls(**out) if len(problems) == before else cls()


def _coerce(value: Any, hint: Any, name: str, problems: list[str]) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, (tuple, list)):
            problems.append(f"config.{name} must be a tuple, got {value!r}")
            return ()
        if inner[-1] is not Ellipsis and len(inner) != len(value):
            problems.append(f"config.{name} must have {len(inner)} entries, got {value!r}")
            return tuple(value)
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_coerce(v, k, f"{name}[{i}]", problems) for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        problems.append(f"config.{name} must be {hint.__name__}, got {value!r}")
    return value


def resolve(config_dict: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """Returns the `Config` of a ConfigDict (or plain nested dict); every mistake in it is named in one ConfigError."""
    if isinstance(config_dict, ml_collections.ConfigDict):
        config_dict = config_dict.to_dict()
    problems: list[str] = []
    config = _build(Config, config_dict, "", problems)
    if not problems:
        from moon_jax.config_rules import problems_of  # they need the classes above

        problems = problems_of(config)
    if problems:
        raise ConfigError("the config cannot be used:\n" + "\n".join(f"  - {p}" for p in problems))
    return config
