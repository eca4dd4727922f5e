"""Hostile configs and run folders, passed to --config, `mmm.load`, `mmm export` and a resumed training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

import mmm
from benchmarks.reliability.corpus import Act, Place, hostile
from benchmarks.reliability.runs import config_of
from mmm.config.cli import parse
from mmm.config.serialize import to_dict
from mmm.train.checkpoint import writer as checkpoint
from mmm.train.run.folder import resolve_folder
from tasks import export, pretrain

DEEP = 100_000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


def _config(place: Place, text: str) -> Act:
    path = place.put("config.yaml", text)
    return partial(parse, pretrain.Config, ["--config", str(path)])


def _run(place: Place, change: Callable[[dict[str, Any]], Any] | None = None, name: str = "run") -> Path:
    """Writes a run folder with a changed config, without training."""
    tree = to_dict(config_of(place.root))
    if change is not None:
        change(tree)
    folder = place.put(f"{name}/config.yaml", yaml.safe_dump(tree)).parent
    parts = pretrain.build_model(config_of(place.root)).state_dict()
    checkpoint.write(folder / "checkpoints", 1, {"model": parts}, {}, None)
    return folder


@hostile
def yaml_that_calls(place: Place) -> Act:
    """Contains a call that PyYAML's unsafe loaders would make."""
    return _config(place, f"seed: !!python/object/apply:os.system ['{place.command}']\n")


@hostile
def yaml_that_makes_an_object(place: Place) -> Act:
    """Contains another tag that creates an object."""
    return _config(place, f"data: !!python/object/new:subprocess.Popen [['touch', '{place.canary}']]\n")


@hostile
def yaml_that_imports(place: Place) -> Act:
    """Imports a module from the config's folder."""
    place.put("hostile_module.py", place.code)
    return _config(place, "seed: !!python/module:hostile_module ''\n")


@hostile
def yaml_of_a_billion_aliases(place: Place) -> Act:
    """Contains nested aliases, which are small in memory until they are expanded."""
    return _config(place, BOMB + "seed: *a11\n")


@hostile
def yaml_of_aliases_where_a_value_stands(place: Place) -> Act:
    """Contains nested aliases inside a valid field."""
    inside = BOMB.replace("\n", "\n  ")
    return _config(place, f"data:\n  {inside}source: *a11\ntrain: {{}}\n")


@hostile
def yaml_nested_for_ever(place: Place) -> Act:
    """Contains deeply nested lists."""
    return _config(place, "seed: " + "[" * DEEP + "]" * DEEP)


@hostile
def yaml_that_names_code_to_use(place: Place) -> Act:
    """Names a file for --use, which is allowed only on the command line."""
    module = place.put("hostile_module.py", place.code)
    return _config(place, f"use: {module}\ndata: {{source: x}}\ntrain: {{batch_size: 1, learning_rate: 1}}\n")


@hostile
def yaml_whose_part_is_a_function(place: Place) -> Act:
    """Names a function as a part; names of parts are looked up only among the registered parts."""
    return _config(place, "encoder: {name: os.system}\ndata: {}\ntrain: {batch_size: 1, learning_rate: 1}\n")


@hostile
def yaml_with_a_tracker_that_is_a_module(place: Place) -> Act:
    """Names a module as a tracker; trackers are looked up in the same way as parts."""
    place.put("hostile_module.py", place.code)
    text = yaml.safe_dump(to_dict(config_of(place.root, steps=1)) | {"folder": str(place.root / "run")})
    return lambda: pretrain.run(_config(place, text.replace("tracker: null", "tracker: hostile_module"))())


@hostile
def run_named_like_a_format(place: Place) -> Act:
    """Contains braces and percent signs in a name that is logged and written."""
    return lambda: resolve_folder(place.root / "{0.__class__.__init__.__globals__} %s%n %(name)s", "pretrain", "auto")


@hostile
def run_that_climbs_into_what_is_there(place: Place) -> Act:
    """Points to an existing folder of other files, which must be rejected without a change in it."""
    place.put("mine/precious.txt", "x")
    inner = place.root / "runs"
    inner.mkdir()
    return lambda: resolve_folder(inner / ".." / "mine", "pretrain", "auto")


@hostile
def manifest_that_names_files_outside(place: Place) -> Act:
    """Lists outside files in a checkpoint's manifest, whose files are opened for hashing."""
    run = _run(place)
    path = run / "checkpoints" / "step_00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in (str(place.bait / "text.txt"), f"../../../{os.path.relpath(place.bait, place.root)}/text.txt"):
        manifest["files"][name] = {"bytes": (place.bait / "text.txt").stat().st_size, "sha256": "0" * 64}
    path.write_text(json.dumps(manifest))
    return partial(mmm.load, run)


@hostile
def manifest_nested_for_ever(place: Place) -> Act:
    """Contains deeply nested lists."""
    run = _run(place)
    (run / "checkpoints" / "step_00000001" / "manifest.json").write_text("[" * DEEP + "]" * DEEP)
    return partial(mmm.load, run)


@hostile
def weights_that_are_a_pipe(place: Place) -> Act:
    """Contains a named pipe, on which a reader would wait."""
    run = _run(place)
    path = run / "checkpoints" / "step_00000001" / "model.safetensors"
    path.unlink()
    os.mkfifo(path)
    return partial(mmm.load, run)


@hostile
def run_whose_config_calls(place: Place) -> Act:
    """Contains a call in the config of a run that is loaded."""
    run = _run(place)
    with (run / "config.yaml").open("a") as file:
        file.write(f"evil: !!python/object/apply:os.system ['{place.command}']\n")
    return partial(mmm.load, run)


@hostile
def run_whose_config_is_a_bomb(place: Place) -> Act:
    """Contains nested aliases in the config of a run that is loaded."""
    run = _run(place)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(BOMB + text.replace("seed: 0", "seed: *a11").replace("ratio: 0.75", "ratio: *a11"))
    return partial(mmm.load, run)


@hostile
def run_with_evaluations_nested_for_ever(place: Place) -> Act:
    """Contains deeply nested lists in the evaluations that a model card shows."""
    run = _run(place)
    (run / "evaluations.jsonl").write_text('{"step": 1, "kind": ' + "[" * DEEP + "]" * DEEP + "}\n")
    return lambda: export.run(export.Config(model=str(run), out=str(place.root / "out")))


@hostile
def card_with_a_script(place: Place) -> Act:
    """Contains HTML in the texts that a model card shows: names of the run, of the data, of the results."""
    script = "<script>alert(1)</script>"

    def spoil(tree: dict[str, Any]) -> None:
        tree["data"]["source"] = f"x` {script} <img src=x onerror=y>\n\n# heading"
        tree["train"]["batch_size"] = script

    run = _run(place, spoil, name="run-<b onclick=x>")
    result = {"step": 1, "kind": f"features {script}", f"{script}.top1": 0.5}
    (run / "evaluations.jsonl").write_text(json.dumps(result) + "\n")

    def act() -> None:
        out = place.root / "out"
        export.run(export.Config(model=str(run), out=str(out)))
        card = (out / "README.md").read_text()
        assert not [tag for tag in ("<script", "<img", "<b ", "\n# heading") if tag in card], card

    return act


@hostile
def lock_that_is_no_lock(place: Place) -> Act:
    """Contains a list instead of a lock in a run folder."""
    run = _run(place)
    (run / "lock").write_text('[{"pid": {}}]')
    return lambda: pretrain.run(pretrain.Config(**{**vars(config_of(place.root)), "folder": str(run), "resume": True}))
