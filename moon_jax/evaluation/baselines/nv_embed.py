"""NV-Embed (Lee et al. 2024, arXiv:2405.17428): latent attention pooling over a Mistral that looks both ways."""

import torch
from jaxtyping import Float, Int
from torch import nn

# config.json of nvidia/NV-Embed-v1: the text model is a Mistral-7B-v0.1, the rest are its classes' defaults.
TEXT_CONFIG = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
LATENT_CONFIG = {
    "num_latents_value": 512,
    "num_cross_heads": 8,
    "hidden_dim": 4096,
    "latent_dim": 4096,
    "cross_dim_head": 4096,
}


class LatentAttention(nn.Module):
    """Every hidden state looks the trained latents up, passes a GEGLU layer, and the mean is taken (paper 3.1, eq. 1).

        o = attend(norm(x), norm_context(latents)) + x;   y = feed_forward(norm(o)) + o;   mean of y over the mask

    The hidden states are the queries, the latents the keys and values. The names of the parameters are the published
    ones.
    """

    def __init__(self, latents: int, heads: int, size: int, head_size: int):
        """Makes the layers.

        Args:
            latents: number of latents.
            heads: of the attention.
            size: of the hidden states and of the latents.
            head_size: of each head; need not divide `size`.
        """
        super().__init__()
        self.latents = nn.Parameter(torch.empty(latents, size))
        self.cross_attend_blocks = nn.ModuleList(
            [_PreNorm(size, _Attention(size, heads, head_size), context=True), _PreNorm(size, _FeedForward(size))]
        )

    def forward(
        self, hidden: Float[torch.Tensor, "m s d"], pooled: Int[torch.Tensor, "m s"]
    ) -> Float[torch.Tensor, "m d"]:
        """Returns the mean over the places where `pooled` is 1, in float32."""
        attend, feed_forward = self.cross_attend_blocks
        hidden = attend(hidden, self.latents) + hidden
        hidden = feed_forward(hidden) + hidden
        weights = pooled.float()[..., None]
        return (hidden.float() * weights).sum(1) / weights.sum(1)


class _PreNorm(nn.Module):
    """A layer with a LayerNorm before it, and one before its context."""

    def __init__(self, size: int, layer: nn.Module, context: bool = False):
        super().__init__()
        self.fn, self.norm = layer, nn.LayerNorm(size)
        self.norm_context = nn.LayerNorm(size) if context else None

    def forward(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return self.fn(self.norm(x), *(self.norm_context(c) for c in context))


class _Attention(nn.Module):
    """Attention of [m, s, d] to a context [n, d] that all sequences share."""

    def __init__(self, size: int, heads: int, head_size: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(size, heads * head_size, bias=False)
        self.to_kv = nn.Linear(size, 2 * heads * head_size, bias=False)
        self.to_out = nn.Linear(heads * head_size, size, bias=False)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)  # [m, heads, s, head_size]
        k, v = self.to_kv(context).chunk(2, dim=-1)
        k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3)[None] for part in (k, v))
        k, v = (part.expand(len(x), -1, -1, -1) for part in (k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(-2, -3).flatten(-2))


class _FeedForward(nn.Module):
    """GEGLU: the first half of the inner layer times the GELU of the second; four times the width."""

    def __init__(self, size: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size, 8 * size), nn.Identity(), nn.Linear(4 * size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, gates = self.net[0](x).chunk(2, dim=-1)
        return self.net[2](values * nn.functional.gelu(gates))
