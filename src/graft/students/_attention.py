"""Attention maps out of timm's vision transformers, with their gradients, from the blocks that are asked for."""

from collections.abc import Sequence

from torch import Tensor, nn


class Watch:
    """Turns blocks of `model` to attention written out, and hands over their maps; the others keep the fused kernel,
    unless `plain` says that it is the slower one.

    timm's unfused path sends the attention matrix (B, H, N, N) through the block's dropout, so that is where a
    watched block keeps it. No parameter is added, so weights load as before.
    """

    def __init__(self, model: nn.Module):
        blocks = getattr(model, "blocks", ())
        attentions = [getattr(block, "attn", None) for block in blocks]
        self.attentions = attentions if all(isinstance(getattr(one, "attn_drop", None), nn.Module)
                                            and hasattr(one, "fused_attn") for one in attentions) else []
        self.layers: tuple[int, ...] = ()
        self._written: dict[int, bool] = {}  # block that is written out -> whether it was fused before

    def __len__(self) -> int:
        """Blocks that can be watched."""
        return len(self.attentions)

    def choose(self, layers: Sequence[int], plain: bool = False) -> None:
        """Watch these blocks from now on, and no others; `plain`: the others are written out, too."""
        layers = tuple(sorted(layers))
        for layer in set(self.layers) - set(layers):
            one = self.attentions[layer]
            one.attn_drop = one.attn_drop.dropout
        for layer in set(layers) - set(self.layers):
            one = self.attentions[layer]
            one.attn_drop = _Keep(one.attn_drop)
        self.layers = layers
        wanted = range(len(self.attentions)) if plain else layers
        for layer in set(self._written) - set(wanted):
            self.attentions[layer].fused_attn = self._written.pop(layer)
        for layer in set(wanted) - set(self._written):
            one = self.attentions[layer]
            self._written[layer], one.fused_attn = one.fused_attn, False

    def take(self, prefix: int) -> dict[int, Tensor]:
        """The maps of the last pass by block: (B, H, T, T), rows over the T patches alone; they are let go of here."""
        maps = {layer: self.attentions[layer].attn_drop.take() for layer in self.layers}
        patches = {layer: whole[:, :, prefix:, prefix:].float() for layer, whole in maps.items()}
        return {layer: rows / rows.sum(-1, keepdim=True) for layer, rows in patches.items()}


class _Keep(nn.Module):
    """Dropout that remembers what it was given."""

    def __init__(self, dropout: nn.Module):
        super().__init__()
        self.dropout, self.seen = dropout, None

    def forward(self, attention: Tensor) -> Tensor:
        self.seen = attention
        return self.dropout(attention)

    def take(self) -> Tensor:
        seen, self.seen = self.seen, None
        return seen
