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
from benchmarks.reliability.corpus import Action, Workspace, hostile
from benchmarks.reliability.runs import make_config
from mmm.config.cli import parse
from mmm.config.serialize import to_dict
from mmm.train.checkpoint import writer as checkpoint
from mmm.train.run.folder import resolve_folder
from tasks import export, pretrain

DEEP = 100_000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


def _config(workspace: Workspace, text: str) -> Action:
    path = workspace.write("config.yaml", text)
    return partial(parse, pretrain.Config, ["--config", str(path)])


def _run(workspace: Workspace, change: Callable[[dict[str, Any]], Any] | None = None, name: str = "run") -> Path:
    """Writes a run folder with a changed config, without training."""
    tree = to_dict(make_config(workspace.root))
    if change is not None:
        change(tree)
    folder = workspace.write(f"{name}/config.yaml", yaml.safe_dump(tree)).parent
    parts = pretrain.build_model(make_config(workspace.root)).state_dict()
    checkpoint.write(folder / "checkpoints", 1, {"model": parts}, {}, None)
    return folder


@hostile
def yaml_that_calls(workspace: Workspace) -> Action:
    """Contains a call that PyYAML's unsafe loaders would make."""
    return _config(workspace, f"seed: !!python/object/apply:os.system ['{workspace.command}']\n")


@hostile
def yaml_that_makes_an_object(workspace: Workspace) -> Action:
    """Contains another tag that creates an object."""
    return _config(workspace, f"data: !!python/object/new:subprocess.Popen [['touch', '{workspace.marker}']]\n")


@hostile
def yaml_that_imports(workspace: Workspace) -> Action:
    """Imports a module from the config's folder."""
    workspace.write("hostile_module.py", workspace.code)
    return _config(workspace, "seed: !!python/module:hostile_module ''\n")


@hostile
def yaml_of_a_billion_aliases(workspace: Workspace) -> Action:
    """Contains nested aliases, which are small in memory until they are expanded."""
    return _config(workspace, BOMB + "seed: *a11\n")


@hostile
def yaml_of_aliases_in_a_field(workspace: Workspace) -> Action:
    """Contains nested aliases inside a valid field."""
    inside = BOMB.replace("\n", "\n  ")
    return _config(workspace, f"data:\n  {inside}source: *a11\ntrain: {{}}\n")


@hostile
def yaml_nested_deeply(workspace: Workspace) -> Action:
    """Contains deeply nested lists."""
    return _config(workspace, "seed: " + "[" * DEEP + "]" * DEEP)


@hostile
def yaml_that_names_code_to_use(workspace: Workspace) -> Action:
    """Names a file for --use, which is allowed only on the command line."""
    module = workspace.write("hostile_module.py", workspace.code)
    return _config(workspace, f"use: {module}\ndata: {{source: x}}\ntrain: {{batch_size: 1, learning_rate: 1}}\n")


@hostile
def yaml_whose_part_is_a_function(workspace: Workspace) -> Action:
    """Names a function as a part; names of parts are looked up only among the registered parts."""
    return _config(workspace, "encoder: {name: os.system}\ndata: {}\ntrain: {batch_size: 1, learning_rate: 1}\n")


@hostile
def yaml_with_a_tracker_that_is_a_module(workspace: Workspace) -> Action:
    """Names a module as a tracker; trackers are looked up in the same way as parts."""
    workspace.write("hostile_module.py", workspace.code)
    text = yaml.safe_dump(to_dict(make_config(workspace.root, steps=1)) | {"folder": str(workspace.root / "run")})
    return lambda: pretrain.run(_config(workspace, text.replace("tracker: null", "tracker: hostile_module"))())


@hostile
def run_named_like_a_format(workspace: Workspace) -> Action:
    """Contains braces and percent signs in a name that is logged and written."""
    return lambda: resolve_folder(workspace.root / "{0.__class__.__init__.__globals__} %s%n %(name)s", "pretrain", "auto")


@hostile
def run_folder_that_is_an_existing_folder(workspace: Workspace) -> Action:
    """Points to an existing folder of other files, which must be rejected without a change in it."""
    workspace.write("mine/precious.txt", "x")
    inner = workspace.root / "runs"
    inner.mkdir()
    return lambda: resolve_folder(inner / ".." / "mine", "pretrain", "auto")


@hostile
def manifest_that_names_files_outside(workspace: Workspace) -> Action:
    """Lists outside files in a checkpoint's manifest, whose files are opened for hashing."""
    run = _run(workspace)
    path = run / "checkpoints" / "step_00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in (str(workspace.canaries / "text.txt"), f"../../../{os.path.relpath(workspace.canaries, workspace.root)}/text.txt"):
        manifest["files"][name] = {"bytes": (workspace.canaries / "text.txt").stat().st_size, "sha256": "0" * 64}
    path.write_text(json.dumps(manifest))
    return partial(mmm.load, run)


@hostile
def manifest_nested_deeply(workspace: Workspace) -> Action:
    """Contains deeply nested lists."""
    run = _run(workspace)
    (run / "checkpoints" / "step_00000001" / "manifest.json").write_text("[" * DEEP + "]" * DEEP)
    return partial(mmm.load, run)


@hostile
def weights_that_are_a_pipe(workspace: Workspace) -> Action:
    """Contains a named pipe, on which a reader would wait."""
    run = _run(workspace)
    path = run / "checkpoints" / "step_00000001" / "model.safetensors"
    path.unlink()
    os.mkfifo(path)
    return partial(mmm.load, run)


@hostile
def run_whose_config_calls(workspace: Workspace) -> Action:
    """Contains a call in the config of a run that is loaded."""
    run = _run(workspace)
    with (run / "config.yaml").open("a") as file:
        file.write(f"evil: !!python/object/apply:os.system ['{workspace.command}']\n")
    return partial(mmm.load, run)


@hostile
def run_whose_config_is_a_bomb(workspace: Workspace) -> Action:
    """Contains nested aliases in the config of a run that is loaded."""
    run = _run(workspace)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(BOMB + text.replace("seed: 0", "seed: *a11").replace("ratio: 0.75", "ratio: *a11"))
    return partial(mmm.load, run)


@hostile
def run_with_evaluations_nested_deeply(workspace: Workspace) -> Action:
    """Contains deeply nested lists in the evaluations that a model card shows."""
    run = _run(workspace)
    (run / "evaluations.jsonl").write_text('{"step": 1, "kind": ' + "[" * DEEP + "]" * DEEP + "}\n")
    return lambda: export.run(export.Config(model=str(run), out=str(workspace.root / "out")))


@hostile
def card_with_a_script(workspace: Workspace) -> Action:
    """Contains HTML in the texts that a model card shows: names of the run, of the data, of the results."""
    script = "<script>alert(1)</script>"

    def insert_script(tree: dict[str, Any]) -> None:
        tree["data"]["source"] = f"x` {script} <img src=x onerror=y>\n\n# heading"
        tree["train"]["batch_size"] = script

    run = _run(workspace, insert_script, name="run-<b onclick=x>")
    result = {"step": 1, "kind": f"features {script}", f"{script}.top1": 0.5}
    (run / "evaluations.jsonl").write_text(json.dumps(result) + "\n")

    def action() -> None:
        out = workspace.root / "out"
        export.run(export.Config(model=str(run), out=str(out)))
        card = (out / "README.md").read_text()
        assert not [tag for tag in ("<script", "<img", "<b ", "\n# heading") if tag in card], card

    return action


@hostile
def lock_that_is_a_list(workspace: Workspace) -> Action:
    """Contains a list instead of a lock in a run folder."""
    run = _run(workspace)
    (run / "lock").write_text('[{"pid": {}}]')
    return lambda: pretrain.run(pretrain.Config(**{**vars(make_config(workspace.root)), "folder": str(run), "resume": True}))
