"""A spec in which every setting that belongs to a model differs from its default."""

from moon_jax.config import DataConfig, GroundingConfig, ModelConfig, MoEConfig, PromptConfig, TextConfig, VisionConfig
from moon_jax.weights.spec import ModelSpec

SPEC = ModelSpec(
    ModelConfig(
        text=TextConfig(320, 24, 20, 3, 6, 2, 4, 5000.0, 1e-6, (1, 0, 1)),
        vision=VisionConfig(2, 16, 10, 2, 3, 3, 2, 2, 12, (1,)),
        attention="bidirectional",
        dtype="bfloat16",
    ),
    MoEConfig(experts=5, top_k=3, gate="softmax_all", guided="exclusive"),
    DataConfig(
        prompt=PromptConfig("<|im_start|>商品 |\n", " / ", "<|im_end|>"), query_prompt=PromptConfig("find: "),
        crop=False, images_per_item=3, min_pixels=72, max_pixels=1800, max_aspect=7.5, title_tokens=11,
        description=True,
        grounding=GroundingConfig("", "{title}?", "it", "{box}", "relative", 32),
    ),
    tied=False,
)  # fmt: skip
