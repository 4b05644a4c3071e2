"""What a config's values must satisfy together, said in plain words; `config.resolve` asks."""

import math
import re

from moon_jax.config import Config, VisionConfig
from moon_jax.config_backbone import BACKBONES, InternConfig

FORMATS = ("jsonl", "mbe", "catalogue", "m5product", "product1m", "marqo", "muge", "mep3m", "table")
EVAL_TASKS = ("retrieval", "classification", "attributes")
FREEZE_WORDS = ("vision", "llm", "backbone")


def problems_of(c: Config) -> list[str]:
    """Returns what is wrong with values that have the right types but cannot work together."""
    text, vision, moe, loss, data, train = c.model.text, c.model.vision, c.moe, c.loss, c.data, c.train
    choices = [
        ("model.vision.kind", vision.kind, tuple(BACKBONES)),
        ("model.attention", c.model.attention, ("causal", "bidirectional")),
        ("model.attention_impl", c.model.attention_impl, ("xla", "splash", "triton", "cudnn")),
        ("model.dtype", c.model.dtype, ("float32", "bfloat16")),
        ("model.remat", c.model.remat, ("none", "layer", "full")),
        ("moe.placement", moe.placement, ("spread", "split")),
        ("moe.gate", moe.gate, ("softmax_active", "softmax_all")),
        ("moe.guided", moe.guided, ("add", "exclusive")),
        ("data.format", data.format, FORMATS),
        ("data.on_error", data.on_error, ("raise", "skip")),
        ("data.grounding.coordinates", data.grounding.coordinates, ("absolute", "relative")),
        ("loss.kind", loss.kind, ("contrastive", "next_token")),
        ("train.optimizer", train.optimizer, ("adamw", "muon")),
        ("eval.gallery", c.eval.gallery, ("listings", "test")),
        ("eval.candidates", c.eval.candidates, ("aspect", "title")),
        *((f"eval.tasks[{i}]", task, EVAL_TASKS) for i, task in enumerate(c.eval.tasks)),
    ]
    problems = [f"config.{k} is {v!r}; it must be one of {', '.join(o)}" for k, v, o in choices if v not in o]

    def need(ok: bool, message: str) -> None:
        if not ok:
            problems.append(message)

    positive = {
        "train.steps": train.steps, "train.batch_size": train.batch_size, "train.log_every": train.log_every,
        "train.checkpoint_every": train.checkpoint_every, "train.keep_checkpoints": train.keep_checkpoints,
        "train.lr": train.lr, "train.clip_norm": train.clip_norm, "loss.temperature": loss.temperature,
        "data.images_per_item": data.images_per_item, "data.title_tokens": data.title_tokens,
        "data.grounding.max_new_tokens": data.grounding.max_new_tokens,
        "data.prefetch": data.prefetch, "eval.batch_documents": c.eval.batch_documents,
        "data.min_pixels": data.min_pixels, "model.text.num_hidden_layers": text.num_hidden_layers,
        "model.vision.depth": vision.depth, "model.vision.num_heads": vision.num_heads,
        "model.vision.patch_size": vision.patch_size, "model.vision.spatial_merge_size": vision.spatial_merge_size,
        "model.text.vocab_size": text.vocab_size, "model.text.num_key_value_heads": text.num_key_value_heads,
    }  # fmt: skip
    problems += [f"config.{k} must be positive, got {v}" for k, v in positive.items() if not 0 < v < math.inf]
    not_negative = {
        "loss.ring_batches": loss.ring_batches, "loss.group_size": loss.group_size,
        "moe.experts": moe.experts, "moe.capacity_factor": moe.capacity_factor,
        "moe.guided_capacity": moe.guided_capacity,
        "moe.router_noise": moe.router_noise, "moe.frozen_router_steps": moe.frozen_router_steps,
        "data.workers": data.workers, "eval.every": c.eval.every,
        "data.crop_margin": data.crop_margin, "data.row_tokens": data.row_tokens, "data.rows": data.rows,
        "data.image_slots": data.image_slots, "moe.upcycle_noise": moe.upcycle_noise,
        "data.category_tokens": data.category_tokens, "data.attribute_tokens": data.attribute_tokens,
        "eval.max_queries": c.eval.max_queries, "train.weight_decay": train.weight_decay,
        "eval.bootstrap_samples": c.eval.bootstrap_samples, "eval.expected_queries": c.eval.expected_queries,
    }  # fmt: skip
    problems += [f"config.{k} must not be negative, got {v}" for k, v in not_negative.items() if not 0 <= v < math.inf]
    shares = {
        "train.warmup_ratio": train.warmup_ratio, "loss.ring_warmup_ratio": loss.ring_warmup_ratio,
        "data.unseen_share": data.unseen_share,
        "data.aspect_dropout": data.aspect_dropout, "data.aspect_only": data.aspect_only,
        "data.own_picture": data.own_picture, "data.own_box": data.own_box,
        "data.title_dropout": data.title_dropout,
        "data.max_skipped_share": data.max_skipped_share, "train.b1": train.b1, "train.b2": train.b2,
    }  # fmt: skip
    problems += [f"config.{k} is a share and must lie in 0..1, got {v}" for k, v in shares.items() if not 0 <= v <= 1]
    if problems:
        return problems

    if not c.model.path:  # else the sizes are the checkpoint's, which is not open yet
        problems += size_problems(c)
    for name, share in (
        ("row_share", data.row_share),
        ("slot_share", data.slot_share),
        ("augment_area", data.augment_area),
    ):
        need(0 < share <= 1, f"config.data.{name} is {share:g}; it must lie in 0..1, above 0")
    need(
        not data.own_picture or data.augment,
        "config.data.own_picture needs config.data.augment, or the query would be the very picture of the listing",
    )
    need(
        data.own_box == 1 or data.own_picture > 0,
        "config.data.own_box is for queries by the listing's own picture: it needs config.data.own_picture",
    )
    unknown = [word for word in train.frozen if word not in FREEZE_WORDS]
    need(
        not unknown,
        f"config.train.freeze {train.freeze!r}: {', '.join(unknown)} is not known; it takes any of "
        f"{', '.join(FREEZE_WORDS)}, joined by commas",
    )
    need(
        not moe.upcycle_noise or bool(c.model.path and moe.experts),
        "config.moe.upcycle_noise is for experts copied from dense weights: it needs config.model.path and experts",
    )
    need(
        not train.frozen or bool(c.model.path),
        f"config.train.freeze = {train.freeze!r} keeps weights as they are, but without config.model.path they are "
        "drawn at random",
    )
    if moe.experts:
        need(moe.experts >= 3, f"config.moe.experts is {moe.experts}: one is for category and one for attribute tokens")
        need(
            moe.top_k > 1 or moe.gate == "softmax_all",
            "config.moe.top_k = 1 with gate = 'softmax_active' gives every expert the weight 1, so that the router "
            "learns nothing from the task: use gate = 'softmax_all' or more experts per token",
        )
        need(
            1 <= moe.top_k <= moe.experts - 2,
            f"config.moe.top_k is {moe.top_k}; it must lie in 1..experts - 2 = {moe.experts - 2}",
        )
    need(data.min_pixels <= data.max_pixels, "config.data.max_pixels must be at least min_pixels")
    need(bool(c.eval.ks) and min(c.eval.ks, default=0) > 0, f"config.eval.ks {c.eval.ks} must list positive ranks")
    need(
        len(set(c.eval.tasks)) == len(c.eval.tasks) > 0,
        f"config.eval.tasks {c.eval.tasks} must name at least one of {', '.join(EVAL_TASKS)}, none of them twice",
    )
    problems += _loss_problems(c)
    need(1 <= data.max_aspect <= 200, f"config.data.max_aspect is {data.max_aspect:g}; it must lie in 1..200")
    need(
        not (loss.group_size and loss.ring_batches),
        "config.loss.group_size > 0 needs config.loss.ring_batches = 0 (negatives stay within the group)",
    )
    need(
        not loss.group_size or train.batch_size % loss.group_size == 0,
        f"config.train.batch_size {train.batch_size} must be a multiple of config.loss.group_size {loss.group_size}",
    )
    need(sum(data.modality_mix) > 0 and min(data.modality_mix) >= 0, "config.data.modality_mix needs a positive entry")
    return problems


def _loss_problems(c: Config) -> list[str]:
    """Returns what does not go with the kind of loss: what each measures, and how grounding is asked for."""
    loss, grounding, problems = c.loss, c.data.grounding, []
    if loss.kind == "contrastive":
        metric = re.fullmatch(r"(?:\w+/)?(?:seen|unseen)/(?:image|text|item)/(?:R@(\d+)|MRR)", c.eval.metric)
        if metric is None or (metric[1] is not None and int(metric[1]) not in c.eval.ks):
            problems.append(
                f"config.eval.metric {c.eval.metric!r} must be [PART/]seen|unseen/image|text|item/R@k or MRR, "
                f"with k in config.eval.ks {c.eval.ks}"
            )
    else:
        if not re.fullmatch(r"(?:\w+/)?(?:seen|unseen)/(?:query|listing)/(?:IoU|IoU@0\.5|valid)", c.eval.metric):
            problems.append(
                f"config.eval.metric {c.eval.metric!r} must be [PART/]seen|unseen/query|listing/IoU, IoU@0.5 or valid "
                "with config.loss.kind = 'next_token'"
            )
        if loss.ring_batches or loss.group_size:
            problems.append("config.loss.kind = 'next_token' has no negatives: set ring_batches and group_size to 0")
    for name, text, field in (("prompt", grounding.prompt, "{title}"), ("answer", grounding.answer, "{box}")):
        if text.count(field) != 1:
            problems.append(f"config.data.grounding.{name} {text!r} must hold {field} once")
    return problems


def size_problems(c: Config) -> list[str]:
    """Returns what is wrong with the sizes of the model, and with settings that depend on them."""
    text, vision = c.model.text, c.model.vision
    problems = []

    def need(ok: bool, message: str) -> None:
        if not ok:
            problems.append(message)

    need(
        2 * sum(text.mrope_section) == text.head_dim,
        f"config.model.text.mrope_section {text.mrope_section} must sum to head_dim / 2 = {text.head_dim / 2:g}",
    )
    need(
        text.num_attention_heads % text.num_key_value_heads == 0,
        "config.model.text.num_attention_heads must be a multiple of num_key_value_heads",
    )
    need(
        vision.hidden_size % vision.num_heads == 0 and (vision.kind == "internvl" or vision.head_dim % 4 == 0),
        "config.model.vision.hidden_size must be a multiple of 4 * num_heads (2-D rotary embedding)",
    )
    if vision.kind != "internvl":
        need(vision.intern == InternConfig(), f"config.model.vision.intern is of kind 'internvl', not {vision.kind!r}")
    else:
        problems += _intern_problems(c)
    if vision.kind == "qwen2_5_vl":
        need(vision.window >= 1, "config.model.vision.window_size is smaller than one merged token")
        need(
            all(0 <= i < vision.depth for i in vision.fullatt_block_indexes),
            f"config.model.vision.fullatt_block_indexes must lie in 0..{vision.depth - 1}",
        )
    else:
        for name in ("window_size", "fullatt_block_indexes"):
            need(
                getattr(vision, name) == getattr(VisionConfig(), name),
                f"config.model.vision.{name} belongs to kind 'qwen2_5_vl'; leave it at its default for "
                f"{vision.kind!r}, which attends within whole pictures or tiles",
            )
    need(
        vision.kind != "qwen2_vl" or vision.intermediate_size % vision.hidden_size == 0,
        "config.model.vision.intermediate_size must be a multiple of hidden_size (mlp_ratio) for kind 'qwen2_vl'",
    )
    need(
        c.loss.kind == "contrastive" or vision.kind != "internvl" or c.data.grounding.coordinates == "relative",
        "config.data.grounding.coordinates must be 'relative' for kind 'internvl': tiles have no pixels of a picture",
    )
    need(
        c.loss.kind == "contrastive" or c.model.attention == "causal",
        f"config.loss.kind = 'next_token' needs config.model.attention = 'causal', not {c.model.attention!r}",
    )
    least, factor = "merged token", vision.patch_size * vision.spatial_merge_size
    if vision.kind == "internvl":
        least, factor = "tile", vision.intern.image_size
    need(c.data.max_pixels >= factor**2, f"config.data.max_pixels must hold at least one {least} ({factor}x{factor})")
    return problems


def _intern_problems(c: Config) -> list[str]:
    """Returns what is wrong with the sizes of InternViT, whose language model has plain rotary positions."""
    text, vision, intern = c.model.text, c.model.vision, c.model.vision.intern
    factor = vision.patch_size * vision.spatial_merge_size
    rules = {
        f"intern.image_size {intern.image_size} must be a positive multiple of patch_size * spatial_merge_size":
            intern.image_size > 0 and intern.image_size % factor == 0,
        f"intern.norm_type {intern.norm_type!r} must be 'layer_norm' or 'rms_norm'":
            intern.norm_type in ("layer_norm", "rms_norm"),
        f"intern.layer_norm_eps {intern.layer_norm_eps} must be positive": 0 < intern.layer_norm_eps < math.inf,
        "temporal_patch_size must be 1: there are no frames": vision.temporal_patch_size == 1,
    }  # fmt: skip
    problems = [f"config.model.vision.{rule} (kind 'internvl')" for rule, holds in rules.items() if not holds]
    if text.mrope_section != (text.head_dim // 2, 0, 0):
        problems.append(
            f"config.model.text.mrope_section must be {(text.head_dim // 2, 0, 0)} for kind 'internvl': positions are "
            "the plain places of tokens"
        )
    return problems
