"""Writes a checkpoint with random weights and the names, shapes, dtype and config of the published Qwen2.5-VL-3B.

    python benchmarks/random_checkpoint.py --output=/scratch/random_3b
    python benchmarks/random_checkpoint.py --output=/scratch/four --layers=4

At full size 824 tensors, 3,754,622,976 parameters, 7.5 GB of bfloat16, in two shards as the published ones. Matrices
have magnitudes from 0.002 to 0.03 and norms lie around 1, so that a forward pass gives finite numbers. The tokenizer is
the real one, from the package dashscope, or that of --tokenizer. Tensors are drawn in pieces, none is in memory whole.
"""

import json
import math
import pathlib
import shutil
import sys

import ml_dtypes
import numpy as np
from absl import app, flags
from tqdm import tqdm

from moon_jax.data.patches import statistics
from moon_jax.data.tokenizer import TokenizerError
from moon_jax.hf.config import read_config
from moon_jax.hf.names import table
from moon_jax.hf.tiktoken import convert_tiktoken, qwen_ranks
from moon_jax.weights.source import WeightsError
from moon_jax.weights.tensor_writer import TensorWriter
from moon_jax.weights.unfinished import new_folder

OUTPUT = flags.DEFINE_string("output", None, "folder to make; must not be there yet", required=True)
LAYERS = flags.DEFINE_integer("layers", 36, "layers of the language model", 1)
BLOCKS = flags.DEFINE_integer("blocks", 32, "blocks of the vision tower", 1)
TOKENIZER = flags.DEFINE_string("tokenizer", None, "folder of a tokenizer instead of the one in dashscope")
SHARD_GB = flags.DEFINE_float("shard_gb", 3.7, "largest file in GiB", 0.0)
SEED = flags.DEFINE_integer("seed", 0, "of the weights", 0)

PIECE_BYTES = 32 << 20
# As published: the text fields at the root, and of the vision tower only what differs from the defaults or is not read.
CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "hidden_size": 1280,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "spatial_patch_size": 14,
        "tokens_per_second": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": statistics("qwen2_5_vl")[0].tolist(),
    "image_std": statistics("qwen2_5_vl")[1].tolist(),
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        write(pathlib.Path(OUTPUT.value))
    except (WeightsError, TokenizerError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def write(output: pathlib.Path) -> None:
    config = json.loads(json.dumps(CONFIG)) | {"num_hidden_layers": LAYERS.value}
    if BLOCKS.value != 32:
        config["vision_config"]["depth"] = BLOCKS.value
    with new_folder(output) as folder:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2))
        if TOKENIZER.value:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(pathlib.Path(TOKENIZER.value) / name, folder / name)
        else:
            convert_tiktoken(qwen_ranks(), folder)
        rows = table(read_config(folder)[0])
        shapes = {name: row.hf_shape for row in rows for name in row.hf_names("hub")}
        count = sum(map(math.prod, shapes.values()))
        half = np.dtype(ml_dtypes.bfloat16)
        tensors = {name: (shape, half) for name, shape in shapes.items()}
        with (
            TensorWriter(folder, tensors, round(SHARD_GB.value * 2**30), {"format": "pt"}) as writer,
            tqdm(total=2 * count, unit="B", unit_scale=True, desc="drawing weights") as bar,
        ):
            for number, (name, shape) in enumerate(shapes.items()):
                rng = np.random.Generator(np.random.SFC64([SEED.value, number]))
                rows_at_a_time = max(1, PIECE_BYTES // (2 * math.prod(shape[1:])))
                for start in range(0, shape[0], rows_at_a_time):
                    piece = draw(rng, name, (min(rows_at_a_time, shape[0] - start), *shape[1:]))
                    writer.write(name, start, piece)
                    bar.update(piece.nbytes)
    print(f"{output}: {len(shapes)} tensors, {count:,} parameters, {2 * count:,} bytes of weights")


def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    bits = np.frombuffer(rng.bytes(2 * math.prod(shape)), np.uint16).reshape(shape)
    if "norm" in name or "ln_q" in name:
        return (1 + bits.astype(np.float32) / 2**18).astype(ml_dtypes.bfloat16)
    exponent = 118 + ((bits >> 7) & 3)  # of 2^-9 to 2^-6; sign and the seven digits as they come
    return ((bits & 0x807F) | (exponent << 7)).astype(np.uint16).view(ml_dtypes.bfloat16)


if __name__ == "__main__":
    app.run(main)
