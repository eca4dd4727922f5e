"""Models that are saved, loaded and shared as the Hugging Face ecosystem does it.

`huggingface_hub.ModelHubMixin` has the same methods; as a base class it would cost every `import mmm` 0.2 s and 190 modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from mmm.core.types import Input

if TYPE_CHECKING:
    from mmm.transform import Transform


class Pretrained:
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a model.

    Example:
        model.save_pretrained("my-encoder")                     # weights in safetensors, configs, and a card
        model = MaskedModel.from_pretrained("my-encoder")       # or a name on the hub: facebook/vit-mae-base
        model.push_to_hub("user/my-encoder", license="mit", results={"top1": 0.83})

    Attributes:
        data: what the data dictated to the parts: size, channels and normalisation of a sample. None: not known.
    """

    data: Input | None

    @property
    def transform(self) -> Transform:
        """The transform that prepares images or clips for this model as evaluation does; see `mmm.Transform`.

        Raises:
            ValueError: the model does not know the properties of its data.
        """
        from mmm.transform import Transform

        return Transform(self._known_data())

    def prepared(self, x: Any) -> Tensor:
        """Returns normalised samples on the model's device.

        Args:
            x: floating point tensors (B, C, H, W) or (B, C, T, H, W) are taken as normalised. Anything else goes through
                `transform`.
        """
        model: Any = self
        ready = isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 4
        return x if ready else self.transform(x).to(next(model.parameters()).device)

    def _known_data(self) -> Input:
        if self.data is None:
            raise ValueError("this model does not know the size and normalisation of its samples; build it with data=Input(...)")
        return self.data

    def save_pretrained(self, folder: str | Path, *, license: str = "unknown", results: Mapping[str, float] | None = None) -> None:
        """Writes model.safetensors, the configs and, where there is none, README.md.

        Args:
            folder: made where it is missing.
            license: for the card, an identifier of the hub's, for instance `mit` or `cc-by-nc-4.0`.
            results: for the card, what evaluations came to, by name.

        Raises:
            ValueError: where a part has no config, or the model does not know its data.
        """
        from mmm.weights.export import save

        model: Any = self
        save(model, Path(folder), license=license, results=results or {})

    @classmethod
    def from_pretrained(cls, path: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Self:
        """Loads a model of this class, on the CPU and in evaluation mode; `mmm.load` takes more arguments.

        Args:
            path: a folder that `save_pretrained` wrote, anything else that `mmm.load` takes, or a name on the hub.
            revision: on the hub: a branch, a tag or a commit.
            token: for the hub. None: that of `hf auth login` or HF_TOKEN.

        Raises:
            ValueError: where there is nothing, or a model of another class.
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
        """Uploads what `save_pretrained` writes, and returns the commit's address.

        Args:
            repo: `user/name`; made where it is missing.
            private: whether a repository that is made is private.
            message: message of the commit.
            license, results: see `save_pretrained`.

        Raises:
            ValueError: where the hub refuses or cannot be reached.
        """
        from tempfile import TemporaryDirectory

        from mmm.weights.hub import push_folder

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, license=license, results=results)
            return push_folder(folder, repo, private=private, message=message)
