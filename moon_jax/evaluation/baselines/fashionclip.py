"""FashionCLIP (Chia et al. 2022), the folder of patrickjohncyh/fashion-clip: CLIP fine-tuned on fashion listings."""

from collections.abc import Mapping

from moon_jax.evaluation.baselines.clip import Clip


class FashionClip(Clip):
    """CLIP in all but the weights: the card's own code calls CLIPModel on unprompted texts and whole pictures."""

    name = "fashionclip"
    rules: Mapping[str, str] = {
        **Clip.rules,
        "source": "Contrastive language and vision learning of general fashion concepts, Sci. Rep. 12 (2022) 18958; "
        "the model card's code",
    }
