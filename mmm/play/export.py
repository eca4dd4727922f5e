"""Writes a Space of the Hugging Face hub with the page: app.py, requirements.txt, README.md, the models, and this package itself.

The package is copied, because a Space cannot install a package that is not on an index, and because a copy does not change.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import mmm
from mmm.play.models import Models

EXTRAS = ("play", "video", "fast")
DISTRIBUTION = "masked-modelling"

APP = '''"""The page of mmm as a Space."""

from pathlib import Path

from mmm.play.models import Models
from mmm.play.page import serve
from mmm.play.player import Player

HERE = Path(__file__).parent
MODELS = {models!r}  # folders here, or names on the hub


def main():
    paths = [str(HERE / name) if (HERE / name).exists() else name for name in MODELS]
    serve(Player(Models(paths)), host="0.0.0.0", port=7860)


if __name__ == "__main__":
    main()
'''
README = """---
title: {title}
emoji: 🧩
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {version}
app_file: app.py
pinned: false
short_description: Hide parts of an image and see what the model predicts
---

# {title}

Hide a part of an image or of a short video, and see what a masked model predicts. Models: {models}.

`python app.py` opens the page on this machine. A visitor's file is kept in memory until the visitor leaves. Check the licences of
the models and of this package before you publish the Space.
"""


def export_space(paths: Sequence[str], folder: Path, *, norm_pix: bool | None = None) -> Path:
    """Writes a Space and returns its folder.

    Args:
        paths: paths of the models. The newest checkpoint of a run is written; a name on the hub is kept as a name.
        folder: a new or empty folder.

    Raises:
        ValueError: the folder is not empty, or a model cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--export {folder} is not empty; give a new folder")
    models = Models(paths, norm_pix=norm_pix)
    models.check()  # so that errors are raised before anything is written
    names = []
    for number, (path, first) in enumerate(models.first.items(), start=1):
        place = Path(path).expanduser()
        if not place.exists():  # a name on the hub
            names.append(path)
            continue
        stem = place.resolve().stem if place.is_file() else place.resolve().name
        names.append(f"models/{number}-{stem}")
        models.load(first).save_pretrained(folder / names[-1])
    source = Path(mmm.__file__).parent
    shutil.copytree(source, folder / "mmm", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.c"))
    title = "A masked model to play with"
    (folder / "app.py").write_text(APP.format(models=names), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    text = README.format(title=title, version=metadata.version("gradio"), models=", ".join(Path(name).name for name in names))
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def requirements() -> list[str]:
    """Returns the requirements of the page, from pyproject.toml in a clone or from the metadata of an installed package."""
    project = Path(mmm.__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        needed = [*table["dependencies"], *(one for extra in EXTRAS for one in table["optional-dependencies"][extra])]
    else:
        needed = []
        for one in metadata.requires(DISTRIBUTION) or []:
            requirement, _, condition = one.partition("; ")
            extra = next((name for name in EXTRAS if f'extra == "{name}"' in condition), None)
            if "extra ==" not in condition:
                needed.append(one)
            elif extra is not None:
                rest = condition.replace(f'extra == "{extra}"', "").strip().removesuffix("and").removeprefix("and").strip(" ()")
                needed.append(f"{requirement}; {rest}" if rest else requirement)
    return sorted(one for one in needed if not one.startswith(DISTRIBUTION))
