"""The answers of the page to its visitors, as plain values.

Visitors share only the models: a visitor's file and mask are in a `Visit`, which ends with the session. One computation runs at a
time, because attention is read through hooks of the shared model.

Shapes: N tokens, (T', H', W') the grid; T' is 1 for an image.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmm.core.rng import sample_keys
from mmm.core.tokens import Grid
from mmm.data import open_data
from mmm.evaluate.batches import choose
from mmm.evaluate.features.retrieval import FeatureIndex, nearest, samples
from mmm.evaluate.features.table import encoded, extract_features, inference
from mmm.evaluate.loaded_model import data_of_weights
from mmm.evaluate.reconstruction.baselines import BASELINES, to_unit
from mmm.evaluate.reconstruction.gallery import GIVEN, OWN, why_not
from mmm.evaluate.reconstruction.reconstruct import Reconstruction, psnr, reconstruct_masked
from mmm.layers.transformer import SelfAttention
from mmm.maskers import maskers
from mmm.model import MaskedModel
from mmm.play.inside import Inside, look_inside
from mmm.play.masks import Drawing, config_of, draw, drawing_of, painted
from mmm.play.models import Models
from mmm.play.pictures import colours, enlarged, frames_of, heat, normalised, outline, to_png
from mmm.play.sample import Sample

Value = dict[str, Any]

VISITS = 64  # visitors whose samples are kept; the one that asked least recently is dropped first
ANIMATION_STEPS = 24  # largest number of checkpoints in a video of a run's steps; they are spread evenly if there are more
TITLES = ("original", "visible", "predicted", "visible + predicted")
SEARCHED = 2000  # largest number of images of a folder whose features are compared


@dataclass
class Visit:
    """A visitor's file and mask.

    Attributes:
        sample: the image or video, or None.
        drawing: its mask.
        token: the clicked token as a place on the grid (t, row, column), with that grid.
        prepared: the inputs of each model, by its name.
        inside: features and attention of at most two models, by model.
    """

    sample: Sample | None = None
    drawing: Drawing | None = None
    token: tuple[int, Grid] | None = None
    prepared: dict[str, Tensor] = field(default_factory=dict)
    inside: OrderedDict[str, Inside] = field(default_factory=OrderedDict)


class Player:
    """Computes the answers of a page. Every method returns plain values, and raises ValueError or Unreadable with a message for the
    visitor."""

    def __init__(self, models: Models, folders: Sequence[str] = (), *, searched: int = SEARCHED) -> None:
        """Creates a player for these models.

        Args:
            models: the models that can be chosen.
            folders: folders of images or videos for the search of similar samples.
            searched: largest number of searched samples of each folder.
        """
        self.models, self.searched = models, searched
        self.folders = {_name_of(folder, folders): folder for folder in folders}
        self.visits: OrderedDict[str, Visit] = OrderedDict()
        self._indices: dict[tuple[str, str], FeatureIndex] = {}
        self._lock = threading.RLock()

    # --- visits --------------------------------------------------------------------------------------------------------------

    def visit(self, session: str) -> Visit:
        """Returns the visit of a session, which begins with its first request."""
        with self._lock:
            visit = self.visits.setdefault(session, Visit())
            self.visits.move_to_end(session)
            while len(self.visits) > VISITS:
                self.visits.popitem(last=False)
            return visit

    def leave(self, session: str) -> None:
        """Ends a session, and deletes its file, its mask and all results."""
        with self._lock:
            self.visits.pop(session, None)

    # --- file and mask -------------------------------------------------------------------------------------------------------

    def open(self, session: str, sample: Sample, name: str) -> Value:
        """Stores a file, and returns the board of a model with a mask that its own masker draws."""
        with self._lock:
            model = self.models.load(name)
            x = sample.prepare(_data(model))  # first, so that an unreadable file does not change the visit
            visit = self.visit(session)
            visit.sample, visit.token, visit.prepared, visit.inside = sample, None, {name: x}, OrderedDict()
            if visit.drawing is None:
                visit.drawing = _own_drawing(model, x)
            return self.board(session, name)

    def board(self, session: str, name: str) -> Value:
        """Returns the picture and the mask on a model's grid."""
        with self._lock:
            visit, model = self.visit(session), self.models.load(name)
            x, grid = self._prepared(visit, name), self._grid(visit, name)
            frames = frames_of(_original(model, x))
            assert visit.sample is not None
            return {
                "label": visit.sample.name,
                "grid": list(grid),
                "frames": len(frames),
                "size": list(frames.shape[1:3]),
                "picture": to_png(frames),
                "hidden": _as_text(self._drawing(visit, grid).hidden),
                "token": self._token(visit, grid),
            }

    def paint(self, session: str, name: str, hidden: str) -> None:
        """Stores a painted mask: a 0 or 1 for each token of the model's grid, 1 for hidden tokens."""
        with self._lock:
            visit = self.visit(session)
            grid = self._grid(visit, name)
            if len(hidden) != torch.Size(grid).numel() or set(hidden) - {"0", "1"}:
                raise ValueError("this mask belongs to another picture; paint again")
            visit.drawing = painted(torch.tensor([mark == "1" for mark in hidden]).view(grid))

    def draw(
        self,
        session: str,
        name: str,
        masker: str,
        ratio: float,
        seed: int,
        options: Mapping[str, Any],
        *,
        frame_by_frame: bool = False,
    ) -> Value:
        """Draws the mask by a registered masker, and returns the board."""
        with self._lock:
            visit, model = self.visit(session), self.models.load(name)
            x, config = self._prepared(visit, name).to(self.models.device), config_of(masker, ratio, options)
            grid, scores = model.tokenizer.grid(x), None
            if maskers[masker].needs_scores:
                with inference(model):
                    scores = model.target.scores(x, model.tokenizer.split(x), grid).cpu()
            visit.drawing = draw(config, grid, seed, frame_by_frame=frame_by_frame, scores=scores)
            return self.board(session, name)

    # --- reconstructions -----------------------------------------------------------------------------------------------------

    def show(self, session: str, names: Sequence[str]) -> tuple[Value, str]:
        """Reconstructs the sample with each model and the same mask.

        Returns:
            Panels, and a table of scores in HTML. A model whose predictions cannot be shown has only the first two panels.
        """
        with self._lock:
            visit = self.visit(session)
            panels, figures, notes = [], {}, []
            for name in names:
                model = self.models.load(name)
                if (reason := why_not(model)) is not None:
                    original = frames_of(_original(model, self._prepared(visit, name)))
                    panels.append(_panel(original, "original", name if len(names) > 1 else ""))
                    notes.append(f"{name} shows features only: {reason.partition(',')[0]}.")
                    continue
                found = self.reconstruct(session, name)
                for title, pixels in zip(TITLES, found.pictures, strict=True):
                    panels.append(_panel(frames_of(pixels), title, name if len(names) > 1 else ""))
                figures[name] = {key: psnr(error.item()) for key, error in found.errors.items()}
                notes.append((f"{name}: " if len(names) > 1 else "") + (GIVEN if found.uses_original else OWN))
            return _view(panels, notes, moving=True), table(figures)

    def reconstruct(self, session: str, name: str) -> Reconstruction:
        """Returns the predictions of a model for the hidden tokens. The visit's mask is fitted to its grid.

        Raises:
            ValueError: no token or every token is hidden, or the model predicts no pixels.
        """
        with self._lock:
            visit, model = self.visit(session), self.models.load(name)
            x = self._prepared(visit, name)
            mask = self._drawing(visit, self._grid(visit, name)).mask(model.masker.config.blank)
            with inference(model):
                return reconstruct_masked(model, x.to(self.models.device), _data(model), mask.to(self.models.device))

    def steps(self, session: str, name: str) -> Value:
        """Returns an animation of the predictions of a run's checkpoints for the same mask; for clips, of their middle frames.

        Raises:
            ValueError: the run has fewer than two checkpoints.
        """
        with self._lock:
            names = self.models.steps(name)
            if len(names) < 2:
                raise ValueError(
                    f"{name} has no other checkpoints of its run; give a run folder that has several (train.keep_every keeps them)"
                )
            if len(names) > ANIMATION_STEPS:
                names = [names[number * (len(names) - 1) // (ANIMATION_STEPS - 1)] for number in range(ANIMATION_STEPS)]
            shown: dict[str, list[Tensor]] = {title: [] for title in TITLES[1:]}
            labels = []
            for one in names:
                found = self.reconstruct(session, one)
                for title, pixels in zip(TITLES[1:], found.pictures[1:], strict=True):
                    shown[title].append(pixels if pixels.dim() == 4 else pixels[:, :, pixels.shape[2] // 2])
                labels.append(f"step {self.models.entries[one].step:,}: {psnr(found.errors['model'].item()):.2f} dB")
            panels = [_panel(frames_of(torch.stack(values, dim=2)), title, "") for title, values in shown.items()]
            return _view(panels, ["The PSNR is that of the hidden tokens."], moving=True, labels=labels)

    # --- inside --------------------------------------------------------------------------------------------------------------

    def look(self, session: str, name: str, block: int, head: int | None, *, token: int | None = None) -> Value:
        """Returns the attention of a token, the similarity of all tokens' features to its own, and the PCA map.

        Args:
            block: counted from 1; the last block if the model has fewer.
            head: counted from 1. None: the mean of the heads.
            token: number of the clicked token in this model's grid. None: the last clicked token, or else the middle one.
        """
        with self._lock:
            visit, model = self.visit(session), self.models.load(name)
            found, grid = self._inside(visit, name), self._grid(visit, name)
            if token is not None:
                visit.token = (min(max(token, 0), torch.Size(grid).numel() - 1), grid)
            chosen = self._token(visit, grid)
            chosen = _middle(grid) if chosen is None else chosen
            picture = enlarged(frames_of(_original(model, self._prepared(visit, name))))
            panels, notes = [_panel(outline(picture, grid, chosen), f"the token: {_place(chosen, grid)}", "")], []
            if found.layers:
                block, head = min(max(block, 1), len(found.layers)), head if head is None or head <= found.heads else None
                weights = found.attention(block, head, chosen)
                which = "mean of all heads" if head is None else f"head {head}"
                title = f"where it looks: block {block}, {which}"
                panels.append(_panel(heat(picture, weights / weights.max(), grid, chosen), title, ""))
                notes.append(f"The grid's tokens get {weights.sum():.0%} of its attention, the brightest {weights.max():.1%}.")
            else:
                notes.append("This encoder has no self-attention of a known kind, so there is none to show.")
            similar = found.similarity(chosen)
            panels.append(_panel(heat(picture, normalised(similar), grid, chosen), "tokens with the nearest features", ""))
            panels.append(_panel(colours(found.colours(), grid, picture.shape[:3]), "PCA of the features", ""))
            order = [place for place in similar.argsort(descending=True).tolist() if place != chosen][:5]
            notes.append("Nearest tokens: " + "; ".join(f"{_place(place, grid)} ({similar[place]:.2f})" for place in order) + ".")
            return _view(panels, notes, moving=False)

    def shape(self, name: str) -> tuple[int, int]:
        """Returns the numbers of attention layers and of heads of a model's encoder; 1 and 0 if none is of a known kind."""
        with self._lock:
            layers = [part for part in self.models.load(name).encoder.modules() if isinstance(part, SelfAttention)]
            return (len(layers), layers[0].num_heads) if layers else (1, 0)

    def neighbours(self, session: str, name: str, folder: str, count: int = 6) -> Value:
        """Returns the samples of a folder with the nearest features, with their cosine similarities."""
        with self._lock:
            index = self._index(name, folder)
            rows, cosines = nearest(self._inside(self.visit(session), name).pooled, index.table.values, count)
            panels = []
            for row, cosine in zip(rows[0].tolist(), cosines[0].tolist(), strict=True):
                found = index.describe(row)
                pixels = samples(index.part, [found["index"]])
                called = Path(found["name"]).name + (f" ({found['label']})" if found["label"] is not None else "")
                panels.append(_panel(enlarged(frames_of(pixels)), f"{cosine:.2f} {called}", ""))
            notes = [f"Cosines of the mean features of {name}; {len(index.table.index):,} of {folder} were searched."]
            return _view(panels, notes, moving=True)

    # --- shared --------------------------------------------------------------------------------------------------------------

    def _prepared(self, visit: Visit, name: str) -> Tensor:
        if visit.sample is None:
            raise ValueError("there is no picture; choose an image or a video first")
        if name not in visit.prepared:
            visit.prepared[name] = visit.sample.prepare(_data(self.models.load(name)))
        return visit.prepared[name]

    def _grid(self, visit: Visit, name: str) -> Grid:
        """Returns the model's grid of the sample, (T', H', W')."""
        return (1, *self.models.load(name).tokenizer.grid(self._prepared(visit, name)))[-3:]

    def _drawing(self, visit: Visit, grid: Grid) -> Drawing:
        assert visit.drawing is not None  # it was set together with the picture
        return visit.drawing.fitted(grid)

    def _token(self, visit: Visit, grid: Grid) -> int | None:
        """Returns the clicked token, converted from the grid on which it was clicked."""
        if visit.token is None:
            return None
        token, old = visit.token
        place = [token // (old[1] * old[2]), token // old[2] % old[1], token % old[2]]
        t, row, column = ((2 * at + 1) * new // (2 * side) for at, side, new in zip(place, old, grid, strict=True))
        return (t * grid[1] + row) * grid[2] + column

    def _inside(self, visit: Visit, name: str) -> Inside:
        if name not in visit.inside:
            x = self._prepared(visit, name).to(self.models.device)
            visit.inside[name] = look_inside(self.models.load(name), x)
            while len(visit.inside) > 2:
                visit.inside.popitem(last=False)
        return visit.inside[name]

    def _index(self, name: str, folder: str) -> FeatureIndex:
        """Returns the features of a folder's samples, which are computed on the first request."""
        if folder not in self.folders:
            raise ValueError(f"no folder is called {folder!r}; give one when the page is started: --folders my_photographs")
        if (name, folder) not in self._indices:
            model = self.models.load(name)
            config: Any = data_of_weights(model)
            changes = {"source": self.folders[folder], "holdout": 0.0, "workers": 0, "max_bad": 1.0}
            part = choose(open_data(replace(config, **changes), "train"), self.searched)
            extracts = {"mean": encoded(model, "mean")}
            table = extract_features(part, extracts, device=self.models.device, batch_size=32)["mean"]
            self._indices[name, folder] = FeatureIndex(part, table)
        return self._indices[name, folder]


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the PSNR of models and baselines as a table in HTML; empty if there is none."""
    if not figures:
        return ""
    rows = []
    restored = any("model_given_original" in own for own in figures.values())
    for key, words in (BASELINES if restored else BASELINES | {"model": "the model"}).items():
        cells = [f"{own[key]:.2f}&nbsp;dB" if key in own else "-" for own in figures.values()]
        if any(cell != "-" for cell in cells):
            ours = "" if words.startswith("no model") else ' class="ours"'
            rows.append(f'<tr{ours}><th scope="row">{words}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in figures)
    caption = "PSNR of the hidden tokens, pixels in [0, 1]; more is better"
    return f'<table class="figures"><caption>{caption}</caption><tr><td></td>{head}</tr>{"".join(rows)}</table>'


def _panel(frames: Any, title: str, group: str) -> Value:
    """Returns one picture, or strip of frames, with its title."""
    alt = f"{title}, {group}" if group else title
    count, height, width, _ = frames.shape
    return {"title": title, "group": group, "alt": alt, "picture": to_png(frames), "frames": count, "size": [height, width]}


def _view(panels: list[Value], notes: list[str], *, moving: bool, labels: Sequence[str] = ()) -> Value:
    """Returns panels with one slider for their frames, each with a label.

    Args:
        moving: whether the animation starts automatically.
    """
    count = max(panel["frames"] for panel in panels)
    labels = labels or [f"frame {number + 1} of {count}" for number in range(count)]
    return {"panels": panels, "labels": list(labels), "notes": notes, "moving": moving}


def _original(model: MaskedModel, x: Tensor) -> Tensor:
    """Returns the pixels of a model's input in [0, 1], equal to those of a reconstruction."""
    return model.tokenizer.join(to_unit(model.tokenizer.split(x), _data(model)), model.tokenizer.grid(x))


def _own_drawing(model: MaskedModel, x: Tensor) -> Drawing:
    """Returns the first mask of the model's own masker for an input, (1, C, s...)."""
    x = x.to(next(model.parameters()).device)
    with inference(model):
        mask = model.draw_masks(x, sample_keys(0, 0, torch.arange(1, device=x.device)))
    return drawing_of(mask.to("cpu"), model.masker.config, model.tokenizer.grid(x))


def _data(model: MaskedModel) -> Any:
    assert model.data is not None
    return model.data


def _name_of(folder: str, folders: Sequence[str]) -> str:
    """Returns the last part of a folder's path, or the whole path if another folder ends in the same part."""
    name = Path(folder).name or folder
    return name if sum((Path(other).name or other) == name for other in folders) == 1 else folder


def _as_text(hidden: Tensor) -> str:
    return "".join("1" if value else "0" for value in hidden.tolist())


def _middle(grid: Grid) -> int:
    return (grid[0] // 2 * grid[1] + grid[1] // 2) * grid[2] + grid[2] // 2


def _place(token: int, grid: Grid) -> str:
    """Returns a token's place as text, counted from 1."""
    t, rest = divmod(token, grid[1] * grid[2])
    row, column = divmod(rest, grid[2])
    return (f"time {t + 1}, " if grid[0] > 1 else "") + f"row {row + 1}, column {column + 1}"
