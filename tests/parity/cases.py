"""The models that are compared with transformers: sizes at which a port goes wrong in one way or another."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """One model: text heads x head_dim wide, vision heads x vision_head wide."""

    heads: int = 4
    kv: int = 2
    head_dim: int = 8
    ffn: int = 40
    layers: int = 2
    section: tuple[int, int, int] = (2, 1, 1)
    theta: float = 1e6
    eps: float = 1e-6
    depth: int = 3
    full: tuple[int, ...] = (1,)
    vision_heads: int = 2
    vision_head: int = 16
    mlp: int = 36
    patch: int = 14
    merge: int = 2
    frames: int = 2
    window: int = 112
    pixel_scale: float = 1.0  # of the patch embedding; small ones make the vision norms feel their epsilon
    tied: bool = True  # the output head is the token embedding
    layout: str = "hub"  # how the checkpoint is written, see oracle.save
    bias: bool = True  # these four are of "internvl"
    qk_norm: bool = False
    norm: str = "layer_norm"
    tile: int = 24
    kind: str = "qwen2_5_vl"  # of vision tower; `full` and `window` are of this one alone
    mlp_ratio: int = 3  # of "qwen2_vl", in the place of `mlp`

    @property
    def text_config(self):
        rope = {"rope_type": "default", "rope_theta": self.theta}
        rope |= {} if self.kind == "internvl" else {"mrope_section": list(self.section)}
        return {
            "hidden_size": self.heads * self.head_dim, "intermediate_size": self.ffn, "rope_parameters": rope,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv,
            "rms_norm_eps": self.eps,
        }  # fmt: skip

    @property
    def vision_config(self):
        width = self.vision_heads * self.vision_head
        if self.kind == "internvl":
            return {
                "num_hidden_layers": self.depth, "hidden_size": width, "num_attention_heads": self.vision_heads,
                "intermediate_size": self.mlp, "patch_size": self.patch, "image_size": self.tile,
                "attention_bias": self.bias, "use_qk_norm": self.qk_norm, "norm_type": self.norm,
                "layer_norm_eps": self.eps,
            }  # fmt: skip
        sizes = {
            "depth": self.depth, "num_heads": self.vision_heads, "patch_size": self.patch,
            "spatial_merge_size": self.merge, "temporal_patch_size": self.frames,
        }  # fmt: skip
        if self.kind == "qwen2_vl":
            return sizes | {"embed_dim": width, "mlp_ratio": self.mlp_ratio}
        return sizes | {
            "hidden_size": width, "intermediate_size": self.mlp, "window_size": self.window,
            "fullatt_block_indexes": list(self.full),
        }  # fmt: skip

    def documents(self):
        """Parts of documents; sizes of pictures in merged tokens, some odd in pixels."""
        f = self.tile // 2 + 1 if self.kind == "internvl" else self.patch * self.merge
        return [
            (3, (4 * f, 5 * f), 6),  # one picture with ragged windows
            (1, (f, 11 * f), 2, (5 * f - 3, 3 * f + 2), 5),  # two: one row wide, one that is resized
            (9,),  # text only
            ((f, f), 1),  # a picture of one token, at the start
            (2, (9 * f, 2 * f)),  # tall, at the end
        ]


CASES = {
    "periodic full attention": Sizes(depth=4, full=(1, 3)),
    "no full attention, no grouping": Sizes(
        kv=4, full=(), window=56, section=(1, 1, 2), vision_heads=3, vision_head=8, tied=False
    ),
    "all full, one kv head": Sizes(heads=6, kv=1, full=(0, 1, 2), theta=1e4, ffn=30, layout="v5"),
    "full everywhere but last": Sizes(heads=3, kv=3, head_dim=16, section=(4, 2, 2), full=(0, 1), layers=3),
    "irregular, window floored": Sizes(
        depth=5, full=(0, 3), window=100, eps=1e-3, mlp=50, heads=8, pixel_scale=1e-3, tied=False, layout="fresh"
    ),
    "patch 6, windows of 5": Sizes(
        patch=6, window=64, vision_heads=4, vision_head=12, head_dim=12, section=(1, 2, 3), layout="fresh"
    ),
    "windows of one token": Sizes(
        window=28, theta=500.0, heads=5, kv=1, head_dim=4, section=(0, 1, 1), depth=2, tied=False, layout="v5"
    ),
    "merge 3, three frames": Sizes(merge=3, patch=4, frames=3, window=30, depth=2, full=(0,), layers=1, layout="base"),
    "one frame, beyond the depth": Sizes(
        frames=1, depth=2, full=(1, 7), window=84, section=(0, 4, 0), eps=1e-5, tied=False
    ),
}

QWEN2_CASES = {
    "Qwen2-VL": Sizes(kind="qwen2_vl", depth=2),
    "Qwen2-VL, patch 6, small pixels": Sizes(
        kind="qwen2_vl", patch=6, mlp_ratio=1, vision_heads=4, vision_head=12, head_dim=12, section=(1, 2, 3),
        pixel_scale=1e-3, tied=False, layout="v5",
    ),
    "Qwen2-VL, merge 3, one kv head": Sizes(
        kind="qwen2_vl", merge=3, patch=4, frames=3, depth=1, heads=6, kv=1, theta=1e4, layers=1, layout="fresh"
    ),
}  # fmt: skip

INTERN_CASES = {
    "InternVL": Sizes(kind="internvl", patch=6, depth=2),
    "InternVL, query and key norms": Sizes(
        kind="internvl", patch=3, bias=False, qk_norm=True, norm="rms_norm", vision_heads=4, vision_head=12, heads=6,
        kv=1, eps=1e-3, theta=1e4, tied=False, layout="v5", pixel_scale=1e-2,
    ),
    "InternVL, one tile of one token": Sizes(
        kind="internvl", patch=5, tile=10, depth=1, head_dim=12, layers=1, layout="base", mlp=7
    ),
}  # fmt: skip

# one text layer and one vision block of the 3B model (width 2048, ffn 11008; 1280, 3420); its head is of its own, since
# after one layer a tied one only says the last token again
REAL_WIDTHS = Sizes(
    heads=16, kv=2, head_dim=128, ffn=11008, layers=1, section=(16, 24, 24), depth=1, full=(), vision_heads=16,
    vision_head=80, mlp=3420, tied=False,
)  # fmt: skip
