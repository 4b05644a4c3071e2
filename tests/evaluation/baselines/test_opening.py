"""What is refused when a baseline is opened or used, in plain words; what its fingerprint is made of."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from moon_jax.config import Role
from moon_jax.data.documents import Document, Segment
from moon_jax.data.picture_files import ImageError
from moon_jax.data.records import ImageRef
from moon_jax.evaluation.baselines import NAMES, BaselineError, open_baseline

TEXT = Document((), (Segment(Role.TITLE, "a red mug"),))
torch_only = pytest.mark.torch


@pytest.fixture
def copy(folders, tmp_path):
    """Gives a copy of a tiny folder, to be damaged."""
    return lambda name: shutil.copytree(folders[name], tmp_path / name, dirs_exist_ok=True)


def change(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def rewrite(folder, edit):
    from safetensors.numpy import load_file, save_file

    weights = {name: np.array(w, order="C") for name, w in load_file(folder / "model.safetensors").items()}
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def refused(name, folder, **settings) -> str:
    with pytest.raises(BaselineError) as caught:
        open_baseline(name, folder, **settings).embed([TEXT])
    return str(caught.value)


def test_an_unknown_name():
    assert all(name in refused("blip", ".") for name in NAMES)


def test_without_torch_the_extra_is_named(monkeypatch, tmp_path):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else there(name))
    assert "pip install 'moon-jax[torch]'" in refused("clip", tmp_path)


def test_the_package_itself_imports_no_torch():
    code = "import sys, moon_jax.evaluation.baselines; print({'torch', 'transformers', 'jax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@torch_only
def test_folders_that_are_no_such_model(copy, tmp_path):
    assert "never downloaded" in refused("clip", tmp_path / "openai/clip-vit-base-patch32")
    assert "has no config.json; it holds nothing" in refused("clip", tmp_path)
    message = refused("siglip2_naflex", copy("siglip2"))
    assert "'siglip'" in message
    assert "siglip2_naflex needs 'siglip2'" in message
    folder = copy("clip")
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refused("clip", folder)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    assert "not a tokenizer" in refused("clip", folder)
    shutil.copy(copy("siglip2") / "tokenizer.json", folder)
    assert "no token <|startoftext|>, <|endoftext|>" in refused("clip", folder)
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read as JSON" in refused("clip", folder)


@torch_only
def test_pickled_weights_are_not_read(copy):
    folder = copy("clip")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "can run code" in refused("clip", folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert "model-1.safetensors, which is not there" in refused("clip", folder)
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    assert "no weight_map of file names" in refused("clip", folder)


@torch_only
def test_weights_that_do_not_fit(copy):
    def lose(weights):
        del weights["visual_projection.weight"]
        weights["more.weight"] = np.zeros(3, np.float32)
        weights["text_projection.weight"] = np.zeros((24, 31), np.float32)

    folder = copy("clip")
    rewrite(folder, lose)
    message = refused("clip", folder)
    assert "1 missing (visual_projection.weight)" in message
    assert "1 left over (more.weight)" in message
    assert "1 of another shape" in message
    assert "text_projection.weight" in message
    folder = copy("clip")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "the weights cannot be loaded" in refused("clip", folder)


@torch_only
def test_what_old_and_headless_checkpoints_hold(copy, folders):
    """Buffers that are computed today; GME's own class has no head."""
    folder = copy("clip")
    rewrite(folder, lambda weights: weights.update({"text_model.embeddings.position_ids": np.arange(20)[None]}))
    np.testing.assert_array_equal(*(open_baseline("clip", f).embed([TEXT]) for f in (folder, folders["clip"])))
    folder = copy("gme")
    rewrite(folder, lambda weights: weights.pop("lm_head.weight", None))
    change(folder, tie_word_embeddings=False)
    np.testing.assert_array_equal(*(open_baseline("gme", f).embed([TEXT]) for f in (folder, folders["gme"])))


@torch_only
def test_the_end_token_of_clip(copy):
    """The text vector is taken where config.json says that texts end; another token's place would be silently wrong."""
    folder = copy("clip")
    config = json.loads((folder / "config.json").read_text())
    change(folder, text_config=config["text_config"] | {"eos_token_id": 7})
    assert "texts end with token 7" in refused("clip", folder)


@torch_only
def test_settings(copy):
    folder = copy("clip")
    assert "'tpu9' cannot be used" in refused("clip", folder, device="tpu9")
    assert "not 'int8'" in refused("clip", folder, dtype="int8")
    assert "at least 1" in refused("clip", folder, batch_size=0)
    assert "at least 1" in refused("clip", folder, max_pixels=0)
    # a size of its own: what changes nothing is no part of the fingerprint either
    assert len({open_baseline("clip", folder, max_pixels=most).fingerprint for most in (None, 100)}) == 1


@torch_only
def test_the_retriever_of_mm_embed(copy):
    folder = copy("mm_embed")
    change(folder, retriever="nvidia/NV-Embed-v2")
    assert "'nvidia/NV-Embed-v2'" in refused("mm_embed", folder)


@torch_only
def test_mm_embed_has_the_published_size():
    """Four files of 4.92, 4.92, 4.92 and 1.60 GB in float16 (its page on the hub), less than 1% from ours."""
    import torch
    import transformers

    from moon_jax.evaluation.baselines import mm_embed, nv_embed

    vision = dict(hidden_size=1024, image_size=336, intermediate_size=4096, num_attention_heads=16)
    vision |= dict(model_type="clip_vision_model", num_hidden_layers=24, patch_size=14, projection_dim=768)
    text = nv_embed.TEXT_CONFIG | {"model_type": "mistral"}
    config = transformers.LlavaNextConfig(vision_config=vision, text_config=text)
    config.latent_attention = nv_embed.LATENT_CONFIG
    with torch.device("meta"):
        model = mm_embed.MMEmbedModel(config)
    assert 2 * sum(p.numel() for p in model.parameters()) == pytest.approx(16.36e9, rel=0.01)


@torch_only
def test_no_code_of_a_folder_is_run(copy, tmp_path):
    folder, trace = copy("mm_embed"), tmp_path / "ran"
    code = f"open({str(trace)!r}, 'w')\nclass NVMMEmbedModel: pass\n"
    (folder / "modeling_nvmmembed.py").write_text(code)
    for file in ("config.json", "preprocessor_config.json"):
        state = json.loads((folder / file).read_text())
        state["auto_map"] = {
            "AutoConfig": "modeling_nvmmembed.NVMMEmbedModel",
            "AutoModel": "modeling_nvmmembed.NVMMEmbedModel",
            "AutoImageProcessor": "modeling_nvmmembed.NVMMEmbedModel",
        }
        (folder / file).write_text(json.dumps(state))
    assert open_baseline("mm_embed", folder).embed([TEXT]).shape == (1, 32)
    assert not trace.exists()


@torch_only
def test_documents_that_cannot_be_embedded(copy, tmp_path):
    baseline = open_baseline("clip", copy("clip"))
    with pytest.raises(BaselineError, match="the mug has neither picture nor text"):
        baseline.embed([TEXT, Document((), (Segment(Role.TITLE, " \n"),), name="the mug")])
    with pytest.raises(ImageError, match=r"lost\.png: no such picture"):
        baseline.embed([TEXT, Document((ImageRef(str(tmp_path / "lost.png")),))])
    folder = copy("clip")
    rewrite(folder, lambda weights: weights["text_projection.weight"].fill(np.nan))
    shown = Document((ImageRef(Image.new("RGB", (30, 30), "red")),), name="a square")
    with pytest.raises(BaselineError, match="1 vectors are zero or no numbers, the first that of the mug"):
        open_baseline("clip", folder).embed([shown, Document((), TEXT.segments, name="the mug")])


@torch_only
def test_saved_vectors_need_no_weights(copy):
    """Opening costs a digest, not the memory of the model."""
    baseline = open_baseline("clip", copy("clip"))
    assert baseline.fingerprint
    assert baseline.embed([]).shape == (0, baseline.about["size"])
    assert "model" not in vars(baseline)
    baseline.embed([TEXT])
    assert "model" in vars(baseline)


@torch_only
def test_fingerprint(copy, folders):
    first = open_baseline("clip", folders["clip"]).fingerprint
    folder = copy("clip")
    (folder / "README.md").write_text("a card")
    assert open_baseline("clip", folder, batch_size=2).fingerprint == first
    others = {
        open_baseline("fashionclip", folder).fingerprint,
        open_baseline("clip", folder, dtype="float16").fingerprint,
    }
    preprocessor = folder / "preprocessor_config.json"
    preprocessor.write_text(preprocessor.read_text() + " ")
    others.add(open_baseline("clip", folder).fingerprint)
    shutil.copy(folders["clip"] / "preprocessor_config.json", folder)
    rewrite(folder, lambda weights: weights["text_projection.weight"].fill(0.5))
    others.add(open_baseline("clip", folder).fingerprint)
    assert len(others | {first}) == 5
