"""Common part of the formats of recent vision transformers, which differ in the names of weights and in options inside a block.

A format consists of a table of names and the fixed options of `encoder.name vit` in its layout. In folders of transformers,
config.json contains the other options; for official files they follow from shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmm.classifier import Classifier
from mmm.core.registry import PartConfig
from mmm.core.types import Input, RequiredFeatures
from mmm.encoders import VisionTransformer
from mmm.tokenizers import Patches, Tubes
from mmm.weights.build import build, count_blocks, describe_pixels, find_grid, find_heads, needed
from mmm.weights.formats.base import CONFIG, FILE, Format, Model, Options, Stored, data_of, shape_of, write_folder
from mmm.weights.matching import BLOCK_CHOICES, Names, fill, renamed, tensors_under

Rows = tuple[tuple[str, tuple[str, ...]], ...]  # name in mmm, names in the layout, to concatenate; a final dot marks a prefix
Said = Mapping[str, Any]


PLAIN = ("norm1.", "norm2.", "attn.qkv.", "attn.proj.", "mlp.fc1.", "mlp.fc2.")  # names inside a block that many layouts share


def same(*names: str) -> Rows:
    """Returns rows for names inside a block that are the same in the layout and in mmm."""
    return tuple((name, (name,)) for name in names)


def separate(prefix: str, *three: str, biases: bool = True) -> Rows:
    """Returns rows for queries, keys and values that are stored separately, under `prefix` and these three names."""
    kinds = ("weight", "bias") if biases else ("weight",)
    return tuple((f"attn.qkv.{kind}", tuple(f"{prefix}{one}.{kind}" for one in three)) for kind in kinds)


class ViTFormat(Format):
    """A layout of an encoder of `encoder.name vit`.

    Attributes:
        outside: rows for weights outside blocks.
        inside: rows for weights inside a block.
        gated: rows for the weights of a gated MLP, if the layout has one.
        blocks: prefix of the names of blocks in the layout.
        choices: the fixed fields of the encoder's config in this layout.
        free: the options inside a block that follow from weights or config.json.
        clips: whether the layout is for clips.
    """

    outside: ClassVar[tuple[tuple[str, str], ...]]
    inside: ClassVar[Rows]
    gated: ClassVar[Rows] = ()
    blocks: ClassVar[str]
    choices: ClassVar[Mapping[str, Any]]
    free: ClassVar[tuple[str, ...]] = ()
    clips: ClassVar[bool] = False

    def names(self, config: VisionTransformer.Config) -> Names:
        """Returns the function that maps names in mmm to names in the layout."""
        inside = (*(self.gated if config.activation == "swiglu" else ()), *self.inside)

        def names(ours: str) -> tuple[str, ...] | None:
            block = re.fullmatch(r"encoder\.blocks\.(\d+)\.(.*)", ours)
            if block is None:
                theirs = renamed(ours, self.outside)
                return None if theirs is None else (theirs,)
            for own, parts in inside:
                if block[2] == own or (own.endswith(".") and block[2].startswith(own)):
                    return tuple(f"{self.blocks}{block[1]}.{part}{block[2].removeprefix(own)}" for part in parts)
            return None

        return names

    def input(self, stored: Stored, size: tuple[int, ...], channels: int) -> Input:
        """Returns size and normalisation of samples, which are partly assumed."""
        return stored.input(size, channels)

    def required(self, tensors: Mapping[str, Tensor]) -> RequiredFeatures:
        """Returns the features that need additional weights: those after the last norm, which every file of these layouts has."""
        return RequiredFeatures()

    def fill(
        self, stored: Stored, tensors: Mapping[str, Tensor], config: VisionTransformer.Config, token: Any, data: Input
    ) -> Model:
        """Returns the model of this encoder, with all tensors copied into it."""
        blanks = renamed("encoder.mask_token", self.outside) in tensors
        model = build(config, tokenizer=token, data=data, required=self.required(tensors), blanks=blanks)
        about = f"encoder of width {config.shape.width} and {config.shape.depth} blocks, samples of {data.size}"
        fill(model, tensors, self.names(config), f"{stored} (read as {self.title}: {about})")
        self.report(stored, tensors, about, f"{config.head_count} heads, {describe_pixels(data)}")
        return model

    def encoder_tensors(self, model: Model) -> tuple[VisionTransformer, dict[str, Tensor]]:
        """Returns the encoder of a model, and its weights under the names of the layout, as views.

        Raises:
            ValueError: the layout does not support a part, a weight or an option.
        """
        encoder = model.encoder
        if not isinstance(encoder, VisionTransformer):
            raise ValueError(f"{self.title} cannot hold the encoder {encoder.config.name}; export --to folder")
        if isinstance(model, Classifier) or model.decoder is not None:
            raise ValueError(f"{self.title} holds only an encoder; load the model without decoder or head, or export --to folder")
        if len(encoder.home) != 2 + self.clips:
            raise ValueError(
                f"{self.title} is for {'clips' if self.clips else 'images'}, and this model is not; export --to folder"
            )
        if encoder.config.activation == "swiglu" and not self.gated:
            raise ValueError(f"{self.title} cannot hold encoder.activation swiglu; export --to folder")
        expected = BLOCK_CHOICES | {name: value for name, value in self.choices.items() if name in (*BLOCK_CHOICES, *BESIDES)}
        choices = {name: value for name, value in expected.items() if name not in self.free}
        alone = nn.ModuleDict({"encoder": encoder})
        return encoder, tensors_under(alone, self.names(encoder.config), self.title, choices)


BESIDES = ("positions", "class_token", "register_places", "qkv_bias")  # choices whose kind does not follow from weights


class OfficialViT(ViTFormat):
    """A file of an official code base, whose sizes follow from shapes.

    Attributes:
        heads: published numbers of heads by width.
        output: names in the layout of the last matrix of the first block's MLP.
        key: key of the weights in a written file. None: the weights are not nested.
    """

    options = frozenset({"heads", "image_size"})
    heads: ClassVar[Mapping[int, int]]
    output: ClassVar[tuple[str, ...]] = ("mlp.fc2.weight",)
    key: ClassVar[str | None] = None

    def tensors(self, stored: Stored) -> dict[str, Tensor]:
        """Returns the encoder's tensors under the names of the layout; a warning names those that are left out."""
        return stored.tensors

    def describe(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns further fields of the encoder's config, from shapes."""
        return {}

    def complete(self, weights: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
        """Returns the weights, with further weights that the official code expects."""
        return weights

    def read(self, stored: Stored, options: Options) -> Model:
        source, tensors = str(stored), self.tensors(stored)
        embedding = renamed("encoder.patch_embed.proj.weight", self.outside)
        assert embedding is not None
        width, channels, *token = needed(tensors, embedding, 4 + self.clips, source).shape
        depth = count_blocks(tensors, self.blocks, source)
        outputs = [f"{self.blocks}0.{name}" for name in self.output]
        output = needed(tensors, next((name for name in outputs if name in tensors), outputs[0]), 2, source)
        config = VisionTransformer.Config(
            width=width,
            depth=depth,
            heads=find_heads("heads", options.heads, width, self.heads, source),
            mlp_ratio=output.shape[1] / width,
            **{**self.choices, **self.describe(tensors)},
        )
        tokenizer: PartConfig = Tubes.Config(size=token[-1], frames=token[0]) if self.clips else Patches.Config(size=token[-1])
        return self.fill(
            stored, tensors, config, tokenizer, self.input(stored, self.size(tensors, config, token, options, source), channels)
        )

    def size(
        self, tensors: Mapping[str, Tensor], config: VisionTransformer.Config, token: list[int], options: Options, source: str
    ) -> tuple[int, ...]:
        """Returns the size of the model's samples: that of the positions, the given size, or 224 pixels."""
        if config.positions == "none":
            side = options.image_size or 224 // token[-1] * token[-1]
            return (side, side) if isinstance(side, int) else side
        table = needed(tensors, "pos_embed", 3, source)
        grid = find_grid(table.shape[1] - config.shape.class_tokens, token[-1], options.image_size, source)
        return tuple(axis * token[-1] for axis in grid)

    def write(self, model: Model, folder: Path) -> list[str]:
        encoder, weights = self.encoder_tensors(model)
        weights = {name: value.clone() for name, value in self.complete(weights, encoder.config.head_count).items()}
        torch.save(weights if self.key is None else {self.key: weights}, folder / FILE)
        inner = "" if self.key is None else f"[{self.key!r}]"
        return ["import torch", f"weights = torch.load({str(folder / FILE)!r}, weights_only=True){inner}  # for the official code"]


class TransformersViT(ViTFormat):
    """A folder of transformers with an encoder; other parts are left out.

    Attributes:
        kinds: the `model_type` in config.json, and the class of the encoder.
        defaults: default values of config.json.
        unread: prefixes of the names of weights that no encoder has.
        spellings: other prefixes or parts of names in transformers, and their forms in the tables of this class.
        channels, side: names of the number of channels and of the side of a sample in config.json.
    """

    kinds: ClassVar[Mapping[str, str]]
    defaults: ClassVar[Mapping[str, Any]]
    unread: ClassVar[tuple[str, ...]] = ("embeddings.mask_token",)
    spellings: ClassVar[tuple[tuple[str, str], ...]] = ()
    channels: ClassVar[str] = "num_channels"
    side: ClassVar[str] = "image_size"

    def detect(self, stored: Stored) -> bool:
        """Returns whether config.json names this kind of model."""
        return stored.config.get("model_type") in self.kinds

    def describe(self, said: Said, kind: str) -> dict[str, Any]:
        """Returns fields of the encoder's config, from config.json."""
        raise NotImplementedError

    def said(self, encoder: VisionTransformer, kind: str) -> dict[str, Any]:
        """Returns fields of config.json, from the encoder. This is the inverse of `describe`."""
        raise NotImplementedError

    def kind_of(self, config: VisionTransformer.Config) -> str:
        """Returns the `model_type` of an encoder."""
        return next(iter(self.kinds))

    def complete(self, weights: dict[str, Tensor], width: int) -> dict[str, Tensor]:
        """Returns the weights, with further weights that transformers expects."""
        return weights

    def read(self, stored: Stored, options: Options) -> Model:
        kind, at = stored.config["model_type"], stored.folder / CONFIG
        said = {**self.defaults, **{name: value for name, value in stored.config.items() if value is not None}}
        activation = self.defaults.get("hidden_act")
        if activation and said["hidden_act"] != activation:
            raise ValueError(f"{at}: hidden_act is {said['hidden_act']!r}; only {activation!r} is supported")
        for name in (self.side, "patch_size"):
            if isinstance(said[name], list) and len(set(said[name])) == 1:
                said[name] = said[name][0]
        for name, default in self.defaults.items():
            if type(said[name]) is not type(default) and not (isinstance(default, float) and type(said[name]) is int):
                raise ValueError(f"{at}: {name} is {said[name]!r}; expected something like {default!r}")
        spelled = self.spelled(stored.tensors, kind)
        tensors = self.leave_out(stored, *self.unread, reason="this is read as an encoder", what="rest", tensors=spelled)
        tensors = {name: value for name, value in tensors.items() if value.numel()}  # a table of no registers is empty
        if said["num_hidden_layers"] > len(tensors):
            raise ValueError(f"{at}: num_hidden_layers {said['num_hidden_layers']} is more than {stored.file} can hold")
        try:
            config = VisionTransformer.Config(
                width=said["hidden_size"],
                depth=said["num_hidden_layers"],
                heads=said["num_attention_heads"],
                **{**self.choices, "norm_epsilon": said["layer_norm_eps"], **self.describe(said, kind)},
            )
        except ValueError as error:
            raise ValueError(f"{at}: {error}") from error
        patch = said["patch_size"]
        side = said[self.side] // patch * patch
        size = (said["frames_per_clip"], side, side) if self.clips else (side, side)
        tokenizer: PartConfig = Tubes.Config(size=patch, frames=said["tubelet_size"]) if self.clips else Patches.Config(size=patch)
        data = self.input(stored, size, said[self.channels])
        return self.fill(stored, tensors, config, tokenizer, data)

    def spelled(self, tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
        """Returns the tensors under the names that the tables of this class use."""
        found = {}
        for name, value in tensors.items():
            usual = name.removeprefix(f"{kind}.")
            for other, ours in self.spellings:
                usual = re.sub(other, ours, usual)
            found[usual] = value
        return found

    def write(self, model: Model, folder: Path) -> list[str]:
        encoder, weights = self.encoder_tensors(model)
        config, kind, data = encoder.config, self.kind_of(encoder.config), data_of(model)
        sides = {*data.size[-2:]}
        if len(sides) > 1:
            raise ValueError(f"{self.title} is for square samples, and this model's are {data.size}; export --to folder")
        content: dict[str, Any] = {
            "architectures": [self.kinds[kind]],
            "model_type": kind,
            "hidden_size": config.shape.width,
            "num_hidden_layers": config.shape.depth,
            "num_attention_heads": config.head_count,
            "hidden_act": "gelu",
            "layer_norm_eps": config.norm_epsilon,
            "patch_size": model.tokenizer.size[-1],
            self.side: sides.pop(),
            self.channels: data.channels,
        }
        content |= self.said(encoder, kind)
        if self.clips:
            content |= {"frames_per_clip": data.size[0], "tubelet_size": model.tokenizer.size[0]}
        write_folder(folder, self.complete(weights, config.shape.width), content)
        name = self.kinds[kind]
        return [f"from transformers import {name}", f"model = {name}.from_pretrained({str(folder)!r})"]

    def usage(self, model: Model) -> list[str]:
        shape = "(B, T, C, H, W)" if self.clips else shape_of(model)
        return [f"features = model(x).last_hidden_state  # x: normalised pixels, {shape}"]
