"""Saving, loading and sharing of models as in the Hugging Face ecosystem.

`huggingface_hub.ModelHubMixin` has the same methods, but as a base class it would add 0.2 s and 190 modules to every `import mmm`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from mmm.core.types import Input

if TYPE_CHECKING:
    from mmm.transform import Transform


def is_normalised(x: Any) -> bool:
    """Returns whether the input counts as a batch of normalised samples."""
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 4


def checked_labels(labels: Sequence[str] | None, classes: int) -> tuple[str, ...] | None:
    """Returns the names of the classes of a model.

    Raises:
        ValueError: their number is not that of the classes.
    """
    if labels is None:
        return None
    if len(labels) != classes:
        raise ValueError(f"labels has {len(labels)} names for {classes} classes; give one for each class, or none")
    return tuple(labels)


def like_weights(x: Tensor, model: nn.Module) -> Tensor:
    """Returns samples on the device and in the precision of a model's weights."""
    weight = next(weight for weight in model.parameters() if weight.is_floating_point())
    return x.to(weight.device, weight.dtype)


def class_names(labels: tuple[str, ...] | None, classes: int) -> tuple[str, ...]:
    """Returns different names of the classes of a model, in order. Without labels, the names are numbers.

    A name that several classes have is followed by the number of the class: `crane (134)` and `crane (517)` of ImageNet.
    """
    if not labels:
        return tuple(str(number) for number in range(classes))
    counts = Counter(labels)
    return tuple(name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(labels))


class Pretrained:
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a model.

    Example:
        model.save_pretrained("my-encoder")                     # weights in safetensors, configs, and a card
        model = MaskedModel.from_pretrained("my-encoder")       # or a name on the hub: facebook/vit-mae-base
        model.push_to_hub("user/my-encoder", license="mit", results={"top1": 0.83})

    Attributes:
        data: properties of the data for which the model was built: size, channels and normalisation of a sample. None: unknown.
    """

    data: Input | None

    @property
    def transform(self) -> Transform:
        """The transform that prepares images or clips for this model as an evaluation does; see `mmm.Transform`.

        Raises:
            ValueError: the properties of the model's data are unknown.
        """
        from mmm.transform import Transform

        return Transform(self._known_data())

    def prepared(self, x: Any) -> Tensor:
        """Returns normalised samples, (B, C, H, W) or (B, C, T, H, W).

        Args:
            x: a floating-point tensor with a batch axis counts as normalised and is returned unchanged: (B, C, H, W) for a model of
                images, (B, C, T, H, W) for a model of clips. Anything else is passed through `transform`, and the result has the
                device and the precision of the model's weights.

        Raises:
            ValueError: a floating-point tensor has at least 4 axes, but not those of this model's batches, or `transform` does not
                accept the samples.
        """
        model: Any = self
        if not is_normalised(x):
            return like_weights(self.transform(x), model)
        token = model.tokenizer.size
        size = token if self.data is None else self.data.size  # images may be encoded as tubes
        if not len(size) + 2 <= x.ndim <= len(token) + 2:
            expected = "(B, C, H, W)" if len(size) == 2 else "(B, C, T, H, W)"
            raise ValueError(
                f"a floating-point tensor {tuple(x.shape)} is not accepted: this model takes normalised samples {expected}; "
                "put a single sample with values from 0 to 1 into a list, [x]"
            )
        return x

    def _known_data(self) -> Input:
        if self.data is None:
            raise ValueError("the size and normalisation of this model's samples are unknown; build it with data=Input(...)")
        return self.data

    def save_pretrained(self, folder: str | Path, *, license: str = "unknown", results: Mapping[str, float] | None = None) -> None:
        """Writes model.safetensors, the configs and, if there is none yet, README.md.

        Args:
            folder: created if it does not exist.
            license: license in the card, an identifier of the hub, for instance `mit` or `cc-by-nc-4.0`.
            results: results of evaluations in the card, by name.

        Raises:
            ValueError: a part has no config, or the properties of the data are unknown.
        """
        from mmm.weights.export import save

        model: Any = self
        save(model, Path(folder), license=license, results=results or {})

    @classmethod
    def from_pretrained(cls, path: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Self:
        """Loads a model of this class, on the CPU and in evaluation mode; `mmm.load` has more arguments.

        Args:
            path: a folder that `save_pretrained` wrote, anything else that `mmm.load` reads, or a name on the hub.
            revision: a branch, tag or commit on the hub.
            token: access token for the hub. None: that of `hf auth login` or HF_TOKEN.

        Raises:
            ValueError: no model is found, or it is a model of another class.
        """
        from mmm.weights.load import load_as

        return load_as(cls, path, revision=revision, token=token)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = True,
        message: str = "Upload by mmm",
        license: str = "unknown",
        results: Mapping[str, float] | None = None,
    ) -> str:
        """Uploads the files that `save_pretrained` writes, and returns the URL of the commit.

        Args:
            repo: `user/name`; created if it does not exist.
            private: whether a new repository is private.
            message: message of the commit.
            license: see `save_pretrained`.
            results: see `save_pretrained`.

        Raises:
            ValueError: the hub refuses the upload or cannot be reached.
        """
        from tempfile import TemporaryDirectory

        from mmm.weights.hub import push_folder

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license, results=results)
            return push_folder(folder, repo, private=private, message=message)
