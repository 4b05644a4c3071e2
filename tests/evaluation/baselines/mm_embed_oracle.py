"""MM-Embed once more, in numpy from the formulas: a Mistral that looks both ways, latent attention pooling."""

import json

import numpy as np
import safetensors.numpy
import scipy.special
import torch
import transformers


def vector(folder, prompt, instruction, picture):
    """The embedding of a prompt with at most one "<image>", as modeling_nvmmembed.py's `encode` would give it.

    `instruction` is what stands before "Query: " in the prompt ("" = nothing is left out of the mean).
    """
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    image = words.convert_tokens_to_ids("<image>")
    ids = words(prompt, truncation=True, max_length=512)["input_ids"]
    table, rows = weights["language_model.embed_tokens.weight"], []
    for token in ids:
        rows += list(_picture(folder, weights, picture)) if token == image else [table[token]]
    x = _mistral(folder, weights, np.array(rows, np.float64))
    x = _latent_attention(weights, x)
    skipped = len(words(instruction)["input_ids"]) if instruction else 0
    mean = x[skipped:].mean(0)
    return mean / np.linalg.norm(mean)


def _picture(folder, weights, picture):
    """[features, size]: CLIP's patches of the whole picture, projected, and the line end."""
    config = json.loads((folder / "config.json").read_text())["vision_config"]
    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**config))
    prefix = "vision_tower.vision_model."
    state = {name.removeprefix(prefix): torch.tensor(w) for name, w in weights.items() if name.startswith(prefix)}
    state.pop("embeddings.position_ids")
    tower.load_state_dict(state)
    side = config["image_size"]
    pixels = np.asarray(picture.resize((side, side), resample=3), np.float64) / 255  # 3 = bicubic
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's
    pixels = torch.tensor(((pixels - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)
    with torch.no_grad():
        patches = tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:].numpy()

    def linear(x, i):
        name = f"multi_modal_projector.linear_{i}"
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    return np.concatenate([linear(_gelu(linear(patches, 1)), 2), weights["image_newline"][None]])


def _mistral(folder, weights, x):
    config = json.loads((folder / "nv_embed/config.json").read_text())["text_config"]
    heads, groups, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    size = x.shape[1] // heads
    angles = np.arange(len(x))[:, None] / config["rope_theta"] ** (np.arange(0, size, 2) / size)
    cos, sin = np.cos(angles), np.sin(angles)

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weights[f"language_model.{name}.weight"]

    def turned(x):
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    for layer in range(config["num_hidden_layers"]):
        w = {n.split(f"layers.{layer}.")[1]: v for n, v in weights.items() if f"language_model.layers.{layer}." in n}
        h = norm(x, f"layers.{layer}.input_layernorm")
        q, k, v = (h @ w[f"self_attn.{n}_proj.weight"].T for n in "qkv")
        out = []
        for head in range(heads):
            own = head // (heads // groups)
            a, b, c = (p[:, i * size : (i + 1) * size] for p, i in ((q, head), (k, own), (v, own)))
            out.append(scipy.special.softmax(turned(a) @ turned(b).T / np.sqrt(size), axis=-1) @ c)  # no mask
        x = x + np.concatenate(out, -1) @ w["self_attn.o_proj.weight"].T
        h = norm(x, f"layers.{layer}.post_attention_layernorm")
        gate, up = (h @ w[f"mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate * scipy.special.expit(gate) * up) @ w["mlp.down_proj.weight"].T
    return norm(x, "norm")


def _latent_attention(weights, x):
    w = {n.split("cross_attend_blocks.")[1]: v for n, v in weights.items() if "cross_attend_blocks." in n}
    latents, heads = weights["latent_attention_model.latents"], 2

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    q = norm(x, "0.norm") @ w["0.fn.to_q.weight"].T
    k, v = np.split(norm(latents, "0.norm_context") @ w["0.fn.to_kv.weight"].T, 2, axis=-1)
    out = []
    for a, b, c in zip(*(np.split(p, heads, axis=-1) for p in (q, k, v)), strict=True):
        out.append(scipy.special.softmax(a @ b.T / np.sqrt(a.shape[-1]), axis=-1) @ c)
    x = x + np.concatenate(out, -1) @ w["0.fn.to_out.weight"].T
    values, gates = np.split(norm(x, "1.norm") @ w["1.fn.net.0.weight"].T + w["1.fn.net.0.bias"], 2, axis=-1)
    return x + (values * _gelu(gates)) @ w["1.fn.net.2.weight"].T + w["1.fn.net.2.bias"]


def _gelu(x):
    return x * scipy.special.ndtr(x)
