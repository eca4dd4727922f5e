"""The source neither runs foreign code nor contacts foreign hosts, and no secret is written to files.

`test_house.py` checks the other forbidden calls: pickle, eval, yaml.load, torch.load without weights_only.
"""

from __future__ import annotations

import ast
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_house import FILES, REPOSITORY, called, imports, within

from mmm.config.cli import main
from mmm.system.redact import HIDDEN, Redacting, redact, redact_command, refuse_secrets

HOSTS = (
    "requests",
    "urllib.request",
    "urllib3",
    "http",
    "httpx",
    "aiohttp",
    "ftplib",
    "smtplib",
    "telnetlib",
    "xmlrpc",
    "paramiko",
    "fsspec",
)
CODE = ("runpy", "code", "codeop", "pty", "cffi", "torch.hub", "torch.utils.cpp_extension", "pickletools")
PROCESSES = ("os.exec", "os.spawn", "os.posix_spawn", "subprocess.getoutput", "subprocess.getstatusoutput")
WRITING = {"dump", "safe_dump", "YAMLError", "AliasEvent"}  # functions of yaml that read no input
NUMPY = {"load"}
CALLS = {"extractall", "unpack_archive", "hub.load", "load_state_dict_from_url", "urlopen", "urlretrieve", "create_connection"}


OURS = [path for path in FILES if path.parts[0] != "benchmarks"]  # benchmarks start processes that connect on this machine


def banned(tree: ast.AST) -> Iterator[str]:
    """Yields the forbidden patterns in a file, with their lines."""
    for name in imports(tree):
        if within(name, *HOSTS, *CODE):
            yield f"import {name}"
    for name, call in called(tree):
        last = name.split(".")[-1]
        if name.startswith(PROCESSES) or last in CALLS or ".".join(name.split(".")[-2:]) in CALLS:
            yield f"{name} in line {call.lineno}"
        if name.startswith("yaml.") and name.split(".")[1] not in WRITING:
            yield f"{name} in line {call.lineno}: mmm.config.serialize reads YAML"
        if last in NUMPY and name.split(".")[0] in ("np", "numpy") and "allow_pickle=False" not in ast.unparse(call):
            yield f"{name} in line {call.lineno} without allow_pickle=False"
        if last == "extract" and "tar" in name.lower():
            yield f"{name} in line {call.lineno}"
        if name.startswith("socket.") and name != "socket.gethostname":
            yield f"{name} in line {call.lineno}"
        if name.startswith("subprocess.") and (not call.args or isinstance(call.args[0], (ast.Constant, ast.JoinedStr, ast.BinOp))):
            yield f"{name} of a text in line {call.lineno}"


NETWORK = {  # reads data at addresses given by the user
    "mmm/data/sources/webdataset/remote.py": {"import http.client"},
    "mmm/data/sources/addresses.py": {f"import fsspec{name}" for name in ("", ".AbstractFileSystem", ".core", ".core.url_to_fs")},
}


def test_our_own_source() -> None:
    found = {str(path): set(banned(ast.parse((REPOSITORY / path).read_text(encoding="utf-8")))) for path in OURS}
    found = {path: names - NETWORK.get(path, set()) for path, names in found.items()}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "line",
    [
        "import requests",
        "from urllib.request import urlopen",
        "import http.client",
        "import runpy",
        "from torch.hub import load",
        "torch.hub.load('a/b', 'c')",
        "tar.extractall(folder)",
        "tarfile.open(path).extract(member)",
        "shutil.unpack_archive(path)",
        "os.execvp('sh', [])",
        "subprocess.getoutput('ls')",
        "subprocess.run('ls ' + name)",
        "subprocess.run(f'ls {name}')",
        "socket.create_connection(('host', 80))",
        "socket.socket()",
        "yaml.safe_load(text)",
        "yaml.unsafe_load(text)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
    ],
)
def test_each_of_these_would_be_found(line: str) -> None:
    assert list(banned(ast.parse(line)))


# --- secrets ----------------------------------------------------------------------------------------------------------------

PLANTED = {
    name: f"planted-{place:02d}-{name.lower()}"
    for place, name in enumerate(
        (
            *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY"),
            *("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "COMET_API_KEY", "NEPTUNE_API_TOKEN", "MLFLOW_TRACKING_PASSWORD"),
            *("GOOGLE_APPLICATION_CREDENTIALS", "DB_PASSWORD", "CLEARML_API_SECRET_KEY", "SLURM_JWT_TOKEN"),
        )
    )
}


def test_no_secret_of_the_environment_reaches_the_run(tmp_path, monkeypatch, run_recipe, capsys, caplog) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["recipe", *PLANTED.values(), "--x", "hf_abcDEF0123456789"])
    folder = tmp_path / "run"
    run_recipe("image_mae", "--folder", str(folder), "--train.tracker", "none")
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"environment.json", "config.yaml", "metrics.jsonl", "state.json"} <= {file.name for file in files}
    written = b"".join(file.read_bytes() for file in files)
    said = "".join(capsys.readouterr()) + caplog.text
    for secret in (*PLANTED.values(), "hf_abcDEF0123456789"):
        assert secret.encode() not in written
        assert secret not in said
    assert (folder / "environment.json").read_text().count(HIDDEN) == len(PLANTED) + 1


def test_a_secret_in_the_config_is_refused_by_name(tmp_path, run_recipe, capsys) -> None:
    address = "https://me:password123@host/data"
    with pytest.raises(SystemExit):
        run_recipe("image_mae", "--folder", str(tmp_path / "run"), "--init", address)
    assert "password123" not in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^data\.source holds what looks like a password") as error:
        refuse_secrets({"data.source": address, "train.steps": 3})
    assert "password123" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("--token hf_abcDEF123", "--token ***"),
        ("--source https://me:pass@host/x", "--source https://***@host/x"),
        ("https:/me:pass@host/x", "https:/***@host/x"),  # a Path drops a slash
        ("C:/mine@home/x", "C:/mine@home/x"),
        ("https://host/x?a=1&X-Amz-Signature=abc", "https://host/x?a=1&***"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("ghp_0123456789abcdef", "***"),
        ("half_life 3, tokenizer.size 16, key=3", "half_life 3, tokenizer.size 16, key=3"),
        ("it is swordfish-9", "it is ***"),
    ],
)
def test_what_is_hidden_and_what_is_not(said: str, shown: str) -> None:
    assert redact(said, {"MY_SECRET": "swordfish-9", "TOKENIZER": "tokenizer", "SHORT_KEY": "is"}) == shown


def test_a_command_is_recorded_without_the_values_of_secrets() -> None:
    words = ["mmm", "--train.tracker_options", "project=cells", "api_key=a b", "--train.tracker_options=[mode=x, WANDB_API_KEY=k]"]
    shown = ["mmm", "--train.tracker_options", "project=cells", "api_key=***", "--train.tracker_options=[mode=x, WANDB_API_KEY=***"]
    kept = ["--encoder.class_token=false", "keys=3", "monkey=1", "hf_abcDEF123"]
    assert redact_command([*words, *kept]) == [*shown, *kept[:-1], "***"]


def test_whatever_logs_and_whatever_fails(tmp_path: Path, monkeypatch, capsys) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Redacting())
    logger = logging.getLogger("another.library")
    logger.addHandler(handler)
    logger.warning("GET %s", "https://me:password123@host/x")
    logger.removeHandler(handler)
    assert stream.getvalue() == "GET https://***@host/x\n"

    def run(config: object) -> dict[str, object]:
        raise ValueError("cannot open https://me:password123@host/x")

    from mmm.train.config import TrainConfig

    with pytest.raises(SystemExit):
        main(run, presets=TrainConfig(batch_size=1, learning_rate=1.0), doc="", argv=[])
    assert "cannot open https://***@host/x" in capsys.readouterr().err
