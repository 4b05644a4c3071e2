"""Converts checkpoints: `python -m moon_jax.convert --source=DIR --target=DIR --to=jax|hf`.

    python -m moon_jax.convert --source=Qwen2.5-VL-3B-Instruct --target=models/qwen --to=jax
    python -m moon_jax.convert --source=Qwen2.5-VL-3B-Instruct --target=models/moon --to=jax --experts=8
    python -m moon_jax.convert --source=runs/shop --target=export/shop --to=hf

The source is a Hugging Face folder of Qwen2.5-VL, a model folder of ours, or a training run (its newest checkpoint).
`--to=jax` writes a model folder, `--to=hf` one that transformers reads; both have everything that the model needs
(weights, sizes, tokenizer, pixels, pooling, prompts, a model card). With `--experts` every FFN of a dense source is
copied to that many experts, which changes nothing until they are trained.

Weights go through memory a layer at a time. The target appears when all of it is on the disk: whatever happens before
leaves at most a hidden folder beside it, which the next start removes.
"""

import concurrent.futures
import dataclasses
import math
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jaxtyping import Shaped
from tqdm import tqdm

from moon_jax.config import MoEConfig
from moon_jax.data.tokenizer import TokenizerError
from moon_jax.hf.save import save_hf
from moon_jax.training.pretrained import Pretrained, open_pretrained
from moon_jax.weights import card, folder
from moon_jax.weights.source import Index, Leaf, Source, Upcycled, WeightsError
from moon_jax.weights.spec import ModelSpec, describe, parse
from moon_jax.weights.unfinished import check_absent, new_folder

DTYPES = ("stored", "float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to make of a source.

    Attributes:
        to: "jax" or "hf".
        experts: copy every FFN to so many; 0 = leave it.
        top_k: general experts that a token visits; these three are `config.moe`'s, None = its defaults.
        gate: see `MoEConfig`.
        guided: see `MoEConfig`.
        noise: standard deviation added to the copies, relative to that of the weight.
        seed: of the routers and the noise.
        dtype: of `DTYPES`.
        max_shard_bytes: of one safetensors file.
    """

    to: str
    experts: int = 0
    top_k: int | None = None
    gate: str | None = None
    guided: str | None = None
    noise: float = 0.0
    seed: int = 0
    dtype: str = "stored"
    max_shard_bytes: int = folder.SHARD_BYTES


class Cast:
    """A source seen in another dtype."""

    def __init__(self, source: Source, dtype: str):
        """Wraps a source.

        Args:
            source: any.
            dtype: "float32", "bfloat16" or "float16".
        """
        self._source, self._dtype = source, jnp.dtype(dtype)
        self.leaves = {name: Leaf(leaf.shape, self._dtype) for name, leaf in source.leaves.items()}

    def read(self, name: str, index: Index = ()) -> Shaped[np.ndarray, "..."]:
        """Returns a slice of a parameter; see `Source`.

        Raises:
            WeightsError: a number that the dtype cannot hold.
        """
        values = self._source.read(name, index)
        if values.dtype == self._dtype:
            return values
        with np.errstate(over="ignore"):  # said below
            out = values.astype(self._dtype)
        if self._dtype.itemsize == 2 and np.isinf(out).sum() > np.isinf(values).sum():
            raise WeightsError(f"{name} has numbers beyond the range of {self._dtype.name}: choose another dtype")
        return out


def convert(source: str | pathlib.Path, target: str | pathlib.Path, options: Options, progress: bool = True) -> str:
    """Writes `target` and returns a table of what is in it.

    Args:
        source: what `open_pretrained` opens; the digests of a model folder are compared.
        target: must not be there yet.
        options: see `Options`.
        progress: show a bar in bytes.

    Raises:
        WeightsError: the source, the target or the options cannot be used; nothing was written.
        TokenizerError: the same of the source's tokenizer.
    """
    if options.to not in ("jax", "hf") or options.dtype not in DTYPES:
        raise ValueError(f"to is jax or hf, dtype one of {', '.join(DTYPES)}; got {options}")
    if not 0 <= options.noise < math.inf:
        raise WeightsError(f"noise is {options.noise}; it must be 0 or a positive number")
    started = time.perf_counter()
    target = check_absent(target)
    if target.is_relative_to(pathlib.Path(source).expanduser().absolute()):
        raise WeightsError(f"{target} is inside of the source: choose another folder")
    with open_pretrained(source, verify=True) as opened:
        opened.load_tokenizer()
        folder.tokenizer_files(opened.tokenizer_folder)
        spec, weights, changes = _plan(opened, options)
        digests = _in_background(opened.origin)
        origin = lambda: {**digests(), "changes": changes}  # noqa: E731
        total = sum(leaf.nbytes for leaf in weights.leaves.values())
        with (
            new_folder(target) as unfinished,
            tqdm(total=total, unit="B", unit_scale=True, desc=f"writing {target.name}", disable=not progress) as bar,
        ):
            if options.to == "jax":
                folder.write_model(
                    unfinished, weights, spec, opened.tokenizer_folder, origin,
                    max_shard_bytes=options.max_shard_bytes, progress=bar.update,
                )  # fmt: skip
            else:
                _write_hf(unfinished, weights, spec, opened.tokenizer_folder, origin, options, bar.update)
        about = folder.summary(weights)
    return _table(target, about, time.perf_counter() - started)


def _plan(opened: Pretrained, options: Options) -> tuple[ModelSpec, Source, list[str]]:
    """Returns (spec, weights, what is changed in words) of the target."""
    spec, weights, changes = opened.spec, opened.source, []
    given = {name: getattr(options, name) for name in ("top_k", "gate", "guided") if getattr(options, name) is not None}
    if options.experts:
        moe = MoEConfig(experts=options.experts, **given)
        spec = parse(describe(dataclasses.replace(spec, moe=moe)), "the model with these experts")
        weights = Upcycled(weights, moe, options.seed, options.noise)
        changes.append(
            f"every FFN copied to {options.experts} experts (noise {options.noise:g}); "
            f"small random routers (seed {options.seed})"
        )
    elif given or options.noise:
        names = [*given, *(["noise"] if options.noise else [])]
        raise WeightsError(f"{', '.join(names)}: of use only with a number of experts to make")
    before = folder.summary(weights)["dtype"]
    if options.dtype != "stored":
        weights = Cast(weights, options.dtype)
        if before != options.dtype:
            changes.append(f"weights rounded or widened from {before} to {options.dtype}")
    return spec, weights, changes


def _write_hf(
    target: pathlib.Path,
    weights: Source,
    spec: ModelSpec,
    tokenizer_folder: pathlib.Path,
    origin: Callable[[], dict[str, Any]],
    options: Options,
    progress: Callable[[int], Any],
) -> None:
    """Writes what transformers needs, and beside it the moon.json and the card that a model folder has too."""
    digests = save_hf(
        target, weights, spec, tokenizer_folder, max_shard_bytes=options.max_shard_bytes, progress=progress
    )
    readme, about = target / folder.README, folder.summary(weights)
    notes = f"\n{readme.read_text(encoding='utf-8')}" if readme.exists() else ""  # what transformers cannot do
    files = {
        name: {"bytes": (target / name).stat().st_size, "sha256": digest}
        for name, digest in digests.items()
        if name != folder.README
    }
    known = origin()
    readme.write_text(card.markdown(spec, about, known, layout="hf") + notes, encoding="utf-8")
    (target / folder.MOON_JSON).write_bytes(folder.moon_json(spec, known, about, files))


def _in_background(work: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Starts some work; the function that is returned waits for its result. An error elsewhere does not wait for it."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="digests", daemon=True).start()
    return future.result


def _table(target: pathlib.Path, weights: dict[str, Any], seconds: float) -> str:
    files = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    width = max(map(len, files))
    lines = [f"{target}: {weights['parameters']:,} parameters in {weights['dtype']}, {seconds:.1f} s"]
    lines += [f"  {name:<{width}}  {size:>15,} bytes" for name, size in files.items()]
    return "\n".join([*lines, f"  {'':<{width}}  {sum(files.values()):>15,} bytes"])


def main(argv: list[str]) -> None:
    """Reads the flags and converts; mistakes of the user end with one plain message instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # Orbax says much at INFO
    jax.config.update("jax_platforms", "cpu")  # nothing is computed; an accelerator may be in use by others
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by a signal; nothing was written"))
    given = flags.FLAGS
    options = Options(
        given.to, given.experts, given.top_k, given.gate, given.guided, given.noise, given.seed, given.dtype,
        round(given.max_shard_gb * 2**30),
    )  # fmt: skip
    try:
        print(convert(given.source, given.target, options))
    except (WeightsError, TokenizerError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; nothing was written")


def _define_flags() -> None:
    """Defines them when the program starts: a library that is imported must not take their names."""
    flags.DEFINE_string("source", None, "a Hugging Face folder, a model folder, a training run or one of its steps")
    flags.DEFINE_string("target", None, "folder to make; must not be there yet")
    flags.DEFINE_enum("to", None, ["jax", "hf"], "a model folder of ours, or one that transformers reads")
    flags.DEFINE_integer("experts", 0, "copy every FFN of a dense model to so many experts; 0 = leave it", 0)
    flags.DEFINE_integer("top_k", None, "with --experts: general experts that a token visits (default 2)", 1)
    flags.DEFINE_enum("gate", None, ["softmax_active", "softmax_all"], "with --experts: as config.moe.gate")
    flags.DEFINE_enum("guided", None, ["add", "exclusive"], "with --experts: as config.moe.guided")
    flags.DEFINE_float("noise", 0.0, "with --experts: deviation added to the copies, relative to the weight's", 0.0)
    flags.DEFINE_integer("seed", 0, "with --experts: of the routers and the noise")
    flags.DEFINE_enum("dtype", "stored", DTYPES, "of the weights; 'stored' keeps every bit of the source's")
    flags.DEFINE_float("max_shard_gb", 2.0, "largest safetensors file in GiB; a tensor is never cut", 0.0)
    flags.mark_flags_as_required(["source", "target", "to"])


if __name__ == "__main__":
    _define_flags()
    app.run(main)
