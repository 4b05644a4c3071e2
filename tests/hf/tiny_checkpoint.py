"""A tiny Qwen2.5-VL checkpoint written by hand: config, tensor names and shapes, no table and no torch involved."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

# text: width 24, 6 heads of 4, 2 kv heads, ffn 20; vision: width 16, 2 heads of 8, mlp 10, patch 3, 2 frames
TEXT = {
    "vocab_size": 32, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "hidden_act": "silu", "use_sliding_window": False,
    "sliding_window": 32768, "max_window_layers": 2,
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 10, "num_heads": 2, "in_channels": 3, "patch_size": 3,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 12, "out_hidden_size": 24,
    "fullatt_block_indexes": [1],
}  # fmt: skip
TOKENS = {"image_token_id": 20, "video_token_id": 21, "vision_start_token_id": 22, "vision_end_token_id": 23}
SECTION = [1, 0, 1]


def flat_config(**changes) -> dict:
    root = {"model_type": "qwen2_5_vl", "torch_dtype": "bfloat16", "tie_word_embeddings": True, "rope_theta": 5000.0}
    rope = {"type": "mrope", "mrope_section": SECTION}
    return root | TEXT | TOKENS | {"rope_scaling": rope, "vision_config": VISION} | changes


def nested_config(**changes) -> dict:
    rope = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": SECTION}
    root = {"model_type": "qwen2_5_vl", "dtype": "bfloat16", "tie_word_embeddings": True}
    return root | TOKENS | {"text_config": TEXT | {"rope_parameters": rope}, "vision_config": VISION} | changes


def tensors(text: str = "model.", vision: str = "visual.", seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of the config above, under the given prefixes."""
    d, f, dv, fv, m = 24, 20, 16, 10, 64
    shapes = {f"{text}embed_tokens.weight": (32, d), f"{text}norm.weight": (d,)}
    for i in range(3):
        layer = f"{text}layers.{i}."
        for name, rows in (("q", 24), ("k", 8), ("v", 8)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, d)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (d, 24)
        shapes |= {f"{layer}mlp.{n}_proj.weight": (f, d) for n in ("gate", "up")} | {
            f"{layer}mlp.down_proj.weight": (d, f)
        }
        shapes |= {f"{layer}{n}_layernorm.weight": (d,) for n in ("input", "post_attention")}
    shapes[f"{vision}patch_embed.proj.weight"] = (dv, 3, 2, 3, 3)
    for i in range(2):
        block = f"{vision}blocks.{i}."
        shapes |= {f"{block}norm1.weight": (dv,), f"{block}norm2.weight": (dv,)}
        shapes |= {f"{block}attn.qkv.weight": (3 * dv, dv), f"{block}attn.qkv.bias": (3 * dv,)}
        shapes |= {f"{block}attn.proj.weight": (dv, dv), f"{block}attn.proj.bias": (dv,)}
        for n in ("gate", "up"):
            shapes |= {f"{block}mlp.{n}_proj.weight": (fv, dv), f"{block}mlp.{n}_proj.bias": (fv,)}
        shapes |= {f"{block}mlp.down_proj.weight": (dv, fv), f"{block}mlp.down_proj.bias": (dv,)}
    shapes |= {f"{vision}merger.ln_q.weight": (dv,), f"{vision}merger.mlp.0.weight": (m, m)}
    shapes |= {f"{vision}merger.mlp.0.bias": (m,), f"{vision}merger.mlp.2.weight": (d, m)}
    shapes[f"{vision}merger.mlp.2.bias"] = (d,)
    rng = np.random.default_rng(seed)
    # numbers that bfloat16 and float16 hold exactly, so that every stored type gives the same tree
    return {n: (rng.integers(-127, 128, s) / 64).astype(np.float32) for n, s in shapes.items()}


def write(folder, tensors, config=None, shards: int = 1, dtype: str = "float32") -> None:
    """Writes config.json and one safetensors file, or several with an index, names dealt out in turns."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or flat_config()))
    tensors = {n: t.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for n, t in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    names = sorted(tensors)
    files = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards] for i in range(shards)}
    for file, part in files.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    write_index(folder, {n: file for file, part in files.items() for n in part})


def write_index(folder, weight_map) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
