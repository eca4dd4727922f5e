"""Models that are saved, loaded and shared as the Hugging Face ecosystem does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin

from mmm.core.types import Input


class Pretrained(ModelHubMixin, library_name="mmm"):
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a model.

    Example:
        model.save_pretrained("my-encoder")                     # model.safetensors, config.yaml, README.md, ...
        model = MaskedModel.from_pretrained("my-encoder")       # or a name on the hub: facebook/vit-mae-base
        model.push_to_hub("user/my-encoder", private=True, model_card_kwargs={"license": "mit"})

    Attributes:
        data: what the data dictated to the parts: size, channels and normalisation of a sample. None: not known.
    """

    data: Input | None

    def _save_pretrained(self, save_directory: Path) -> None:
        from mmm.weights.export import write_files

        model: Any = self
        write_files(model, "folder", save_directory)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
    ) -> Self:
        from mmm.weights.hub import pull_folder
        from mmm.weights.load import load_as

        if Path(model_id).exists():
            return load_as(cls, model_id)
        folder = pull_folder(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return load_as(cls, folder)

    def generate_model_card(self, license: str = "unknown", results: dict[str, Any] | None = None) -> ModelCard:
        """The card that `save_pretrained` writes where the folder has none.

        Args:
            license: an identifier of the hub's, for instance `mit` or `cc-by-nc-4.0`.
            results: what evaluations of these weights came to, by name, for instance {"top1": 0.83}.
        """
        from mmm.weights.model_card import Origin, model_card

        model: Any = self
        return model_card(model, Origin(license=license, results=results or {}))
