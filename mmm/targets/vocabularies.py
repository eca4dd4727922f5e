"""Vocabularies: frozen tokenizers that map each token of the grid to one of K codes.

`kmeans` is computed from training samples. `dalle` and `vqkd` are the published vocabularies of BEiT and BEiT v2, read from files.

Shapes: B samples, N tokens, P values per token, K codes, D values that are compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmm.core.rng import sample_keys, scores
from mmm.core.tokens import Grid
from mmm.core.types import Input
from mmm.targets.base import Samples
from mmm.targets.kmeans import nearest, spherical_kmeans
from mmm.targets.teachers import Frozen, FrozenEncoder, first_frames, leave_out_frozen, read_teacher

PATCHES = "patches"
POINTS = 64  # maximum number of tokens per code that k-means uses


class Vocabulary(nn.Module, ABC):
    """Maps each token to a code from 0 to K - 1.

    Attributes:
        frozen: the network of the vocabulary, which each training reads again, or None.
    """

    frozen: Frozen | None

    def __init__(self) -> None:
        super().__init__()
        self.frozen = None
        leave_out_frozen(self)

    @abstractmethod
    def begin(self, model: Any, load: Callable[[str], Any], samples: Samples | None) -> None:
        """Prepares a training; see `Target.begin`."""

    @abstractmethod
    def forward(self, x: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Returns the codes of every token, int64 (B, N), for a normalised input (B, C, s...) and its patches (B, N, P)."""


class KMeansVocabulary(Vocabulary):
    """The nearest of K directions to each patch minus its mean, or to the features of a frozen encoder.

    Before a training, the directions are random (as in Chiu et al., "BEST-RQ", ICML 2022).
    """

    centres: Tensor
    frozen: FrozenEncoder | None

    def __init__(
        self,
        codes: int,
        *,
        source: str,
        width: int,
        block: int | None,
        samples: int,
        iterations: int,
        own: Input,
        token: tuple[int, ...],
    ) -> None:
        """Creates random directions for values of this `width`: patches, or features of the encoder that `source` names."""
        super().__init__()
        self.codes, self.source, self.blocks = codes, source, None if block is None else (block,)
        self.samples, self.iterations, self.own, self.token = samples, iterations, own, token
        random = scores(sample_keys(0, 0, torch.arange(codes)), width)
        self.register_buffer("centres", F.normalize(random.double(), dim=1).float())

    def begin(self, model: Any, load: Callable[[str], Any], samples: Samples | None) -> None:
        """Reads the encoder, and clusters values of training samples.

        Raises:
            ValueError: the encoder cannot be read or has another width, or there are fewer tokens than codes.
        """
        if self.source != PATCHES:
            self.frozen = read_teacher(self.source, load, self.own, self.token)
            if self.frozen.width != self.centres.shape[1]:
                raise ValueError(f"target.source {self.source} has features of width {self.frozen.width}; set target.source_width")
            if self.blocks is not None and max(self.blocks) > self.frozen.depth:
                raise ValueError(f"target.block {self.blocks[0]} is not among the {self.frozen.depth} blocks of {self.source}")
        if samples is None:
            return
        found: list[Tensor] = []
        for number, x in enumerate(samples(self.samples)):
            if self.frozen is not None:
                self.frozen.to(x.device)
            values = self.values(x, model.tokenizer.split(x), model.tokenizer.grid(x)).flatten(0, 1)
            share = -(-POINTS * self.codes * len(x) // self.samples)  # number of tokens from this batch
            chance = scores(sample_keys(0, 0, number), len(values))[0].to(x.device)
            found.append(values[chance.argsort()[:share]])
        points = torch.cat(found)
        if len(points) < self.codes:
            raise ValueError(
                f"target.codes {self.codes} is more than the {len(points)} tokens that were read; lower it, or raise target.samples"
            )
        self.centres.copy_(spherical_kmeans(points, self.codes, self.iterations))

    @torch.no_grad()
    def values(self, x: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        """Returns the values whose directions are compared, in fp32 or better, (B, N, D)."""
        if self.source == PATCHES:
            patches = patches if patches.dtype.itemsize >= 4 else patches.float()
            return patches - patches.mean(2, keepdim=True)
        if self.frozen is None:
            raise ValueError(f"target.source {self.source} was not loaded, so there are no codes; call target.begin first")
        values = self.frozen.features(x, grid, self.blocks)[0]
        return values if values.dtype.itemsize >= 4 else values.float()

    def forward(self, x: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        values = self.values(x, patches, grid)
        return nearest(values.flatten(0, 1), self.centres.to(values.dtype))[0].view(values.shape[:2])


class PublishedVocabulary(Vocabulary):
    """Base of vocabularies that are read from files; their networks need RGB images."""

    def __init__(self, source: str, own: Input, token: tuple[int, ...]) -> None:
        super().__init__()
        if own.channels != 3:
            raise ValueError(f"data.channels {own.channels}: published vocabularies have 3; target.vocabulary kmeans takes any")
        self.source, self.own, self.token = source, own, token

    @property
    def network(self) -> Any:
        """The network that the training has read, with its weights.

        Raises:
            ValueError: it has not been read.
        """
        if self.frozen is None:
            raise ValueError(f"target.source {self.source} was not loaded, so there are no codes; call target.begin first")
        return self.frozen.network

    def pictures(self, x: Tensor, grid: Grid, patch: int) -> Tensor:
        """Returns the first frames of tubes, resized so that the network's patches form the grid, (B T', 3, H, W)."""
        assert self.frozen is not None
        pictures, size = self.frozen.pixels(first_frames(x, self.token[0])), (grid[-2] * patch, grid[-1] * patch)
        return pictures if pictures.shape[-2:] == size else F.interpolate(pictures, size=size, mode="bicubic", antialias=True)


class DalleVocabulary(PublishedVocabulary):
    """The 8192 codes of DALL-E's tokenizer (Ramesh et al., ICML 2021), which BEiT predicts, as read by transformers.

    A code describes 8 x 8 pixels. Images are resized so that the grid of codes is the model's grid (BEiT: 112 pixels).
    """

    def begin(self, model: Any, load: Callable[[str], Any], samples: Samples | None) -> None:
        """Reads the tokenizer.

        Raises:
            ValueError: the path contains no tokenizer.
        """
        try:
            from transformers import FlavaImageCodebook

            network = FlavaImageCodebook.from_pretrained(self.source)
        except (OSError, ImportError, ValueError) as error:
            raise ValueError(
                f"target.source {self.source} holds no DALL-E tokenizer as transformers stores it (facebook/flava-image-codebook): "
                f"{str(error).strip().splitlines()[0]}; target.vocabulary kmeans needs no file"
            ) from error
        # 0.1 + 0.8 pixel: DALL-E's map of pixels away from 0 and 1, where its likelihood is not defined
        self.frozen = Frozen(network, self.own, [-0.125] * 3, [1.25] * 3)

    def forward(self, x: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # in bf16 the largest of 8192 values would often be another one
            codes = self.network.get_codebook_indices(self.pictures(x, grid, 8))  # (B T', H', W')
        return codes.view(len(x), -1)


class VqkdVocabulary(PublishedVocabulary):
    """The codes of BEiT v2's tokenizer (Peng et al., 2022): the nearest of its directions to its encoder's projected features."""

    def begin(self, model: Any, load: Callable[[str], Any], samples: Samples | None) -> None:
        """Reads a weight file of the tokenizer (`vqkd_encoder_base_decoder_*.pth`).

        Raises:
            ValueError: the file does not exist, or contains something else.
        """
        path = Path(self.source).expanduser()
        try:
            with torch.serialization.safe_globals([(Ignored, "argparse.Namespace")]):
                stored = torch.load(path, map_location="cpu", weights_only=True)
            stored = stored.get("model", stored)
            network = VqkdEncoder({name: value for name, value in stored.items() if isinstance(value, Tensor)})
        except (OSError, RuntimeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"target.source {path} holds no tokenizer of BEiT v2 (vqkd_encoder_base_decoder_*.pth): "
                f"{str(error).strip().splitlines()[0]}; target.vocabulary kmeans needs no file"
            ) from error
        self.frozen = Frozen(network, self.own, [0.5] * 3, [0.5] * 3)

    def forward(self, x: Tensor, patches: Tensor, grid: Grid) -> Tensor:
        return self.network(self.pictures(x, grid, self.network.patch)).view(len(x), -1)


class Ignored:
    """Replaces the training options in a weight file, which are ignored."""

    def __init__(self, *arguments: object) -> None:
        """Ignores its arguments."""

    def __setstate__(self, state: object) -> None:
        """Ignores the state."""


class VqkdEncoder(nn.Module):
    """The encoder, the projection and the directions of BEiT v2's tokenizer, without its decoder."""

    codes: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        from timm.models.beit import Beit

        super().__init__()
        embed = weights["encoder.patch_embed.proj.weight"]  # (D, 3, p, p)
        width, self.patch = embed.shape[0], embed.shape[2]
        side = round((weights["encoder.pos_embed"].shape[1] - 1) ** 0.5) * self.patch
        depth = len({name.split(".")[2] for name in weights if name.startswith("encoder.blocks.")})
        hidden = weights["encoder.blocks.0.mlp.fc1.weight"].shape[0]
        self.encoder = Beit(
            img_size=side,
            patch_size=self.patch,
            embed_dim=width,
            depth=depth,
            num_heads=max(1, width // 64),
            mlp_ratio=hidden / width,
            num_classes=0,
            init_values=None,
            use_abs_pos_emb=True,
        )
        self.encode_task_layer = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, weights["encode_task_layer.2.weight"].shape[0])
        )
        self.register_buffer("codes", weights["quantize.embedding.weight"])
        kept = {name: value for name, value in weights.items() if name.startswith(("encoder.", "encode_task_layer."))}
        self.load_state_dict(kept | {"codes": self.codes})

    def forward(self, pictures: Tensor) -> Tensor:
        """Returns the codes of the patches of images (B, 3, H, W) in [-1, 1], int64 (B N,)."""
        tokens = self.encoder.fc_norm(self.encoder.forward_features(pictures)[:, 1:])  # (B, N, D)
        directions = F.normalize(self.encode_task_layer(tokens).flatten(0, 1).float(), dim=1)
        return nearest(directions, self.codes.float())[0]
