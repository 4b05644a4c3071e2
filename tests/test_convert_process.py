"""Conversion as a process of its own: killed, stopped, short of memory, and from the command line."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny_hf

from moon_jax.convert import Options, convert
from moon_jax.training.pretrained import open_pretrained
from moon_jax.weights.source import WeightsError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return tiny_hf.write(tmp_path_factory.mktemp("source") / "Tiny", dtype="bfloat16")


# ------------------------------------------------------------------------------------------------------ killed

KILL = """
import os, signal, sys
from moon_jax import convert
from moon_jax.hf.load import HFSource
from moon_jax.weights import folder, unfinished

where, source, target, to = sys.argv[1:]
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if where == "weights":
    real, reads = HFSource.read, []
    def read(self, name, index=()):
        reads.append(name)
        return kill() if len(reads) == 40 else real(self, name, index)
    HFSource.read = read
elif where == "description":
    folder.moon_json = kill
else:
    unfinished.check_absent = lambda target, real=unfinished.check_absent, calls=[]: (
        kill() if calls.append(0) or len(calls) == 2 else real(target))
convert.convert(source, target, convert.Options(to), progress=False)
"""


@pytest.mark.parametrize(("where", "to"), [("weights", "jax"), ("description", "hf"), ("rename", "jax")])
def test_a_killed_conversion_starts_again(hf, tmp_path, where, to):
    target = tmp_path / "out" / "model"
    killed = subprocess.run(
        [sys.executable, "-c", KILL, where, hf, target, to], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = [path.name for path in target.parent.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".model.unfinished-")
    if where == "weights":  # while weights are being written, their files do not even open
        with pytest.raises(WeightsError):
            open_pretrained(target.parent / left[0])
    if where == "description":
        assert not (target.parent / left[0] / "moon.json").exists()
    convert(hf, target, Options(to), progress=False)
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert open_pretrained(target, verify=True).kind == ("model" if to == "jax" else "hf")


TERM = """
import os, signal
from absl import app
from moon_jax import convert
from moon_jax.hf.load import HFSource

real, reads = HFSource.read, []
def read(self, name, index=()):
    reads.append(name)
    if len(reads) == 40:
        os.kill(os.getpid(), signal.SIGTERM)
    return real(self, name, index)
HFSource.read = read
convert._define_flags()
app.run(convert.main)
"""


def test_a_terminated_conversion_tidies_up(hf, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TERM, f"--source={hf}", f"--target={tmp_path / 'out'}", "--to=jax"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().endswith("stopped by a signal; nothing was written")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ memory

PEAK = """
import json, sys
from moon_jax import convert
from moon_jax.training import pretrained

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

source, target, experts = sys.argv[1:]
pretrained.open_pretrained(source).load_tokenizer()  # imports and compiles; not what is measured
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
convert.convert(source, target, convert.Options("jax", experts=int(experts)), progress=False)
print(json.dumps(status("VmHWM") - before))
"""


@pytest.mark.parametrize(("layers", "experts"), [(12, 0), (3, 8)])
def test_memory_is_that_of_a_layer(tmp_path, layers, experts):
    width, ffn = 1024, 4096  # 8 MB a matrix of an FFN, in bfloat16
    source = tiny_hf.write(tmp_path / "Medium", dtype="bfloat16")
    config = json.loads((source / "config.json").read_text())
    config |= {
        "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [16, 8, 8]},
    }  # fmt: skip
    config["vision_config"] |= {"out_hidden_size": width}
    (source / "config.json").write_text(json.dumps(config))
    sparse(source / WEIGHTS, medium(width, ffn, layers))
    target = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", PEAK, source, target, str(experts)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    total = sum(path.stat().st_size for path in target.iterdir())
    assert total > 300e6 if not experts else total > 600e6
    assert json.loads(done.stdout) < 60e6  # a few matrices; one parameter of all layers has 100 MB, of 8 experts 67 MB


def medium(width, ffn, layers):
    """Shapes of the tensors of `tiny_hf` with another language model."""
    shapes = {n: a.shape for n, a in tiny_hf.tensors().items() if n.startswith("visual.")}
    shapes |= {"visual.merger.mlp.2.weight": (width, 64), "visual.merger.mlp.2.bias": (width,)}
    shapes |= {"model.embed_tokens.weight": (tiny_hf.VOCAB, width), "model.norm.weight": (width,)}
    kv = width // 16 * 2
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name, rows in (("q", width), ("k", kv), ("v", kv)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, width)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (width, width)
        shapes |= {f"{layer}mlp.{name}_proj.weight": (ffn, width) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (width, ffn)
        shapes |= {f"{layer}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return shapes


def sparse(path: pathlib.Path, shapes) -> None:
    """A safetensors file of zeros that takes no room on the disk."""
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + position)


# --------------------------------------------------------------------------------------------------- command line


def command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "moon_jax.convert", *flags], capture_output=True, text=True, check=False
    )


def test_the_command(hf, tmp_path):
    done = command(
        f"--source={hf}", f"--target={tmp_path / 'out'}", "--to=jax", "--experts=4", "--max_shard_gb=0.00001"
    )
    assert done.returncode == 0, done.stderr
    assert "parameters in bfloat16" in done.stdout
    files = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    for name, size in files.items():
        assert any(line.split()[:2] == [name, f"{size:,}"] for line in done.stdout.splitlines()), name
    assert "B/s" in done.stderr
    again = command(f"--source={hf}", f"--target={tmp_path / 'out'}", "--to=jax")
    assert again.returncode == 1
    assert again.stderr.strip().endswith("is there already: choose another folder, or remove it")
    assert "Traceback" not in again.stderr
