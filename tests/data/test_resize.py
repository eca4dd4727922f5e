"""The compiled resize gives the same bits as torch's, accesses no other memory, and is optional."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mmm.data.transforms import resize as resizing
from mmm.data.transforms.resize import Kernel, load, resize, resize_into

SOURCE = Path(resizing.__file__).with_name("_resize.c")
KERNELS: list[Kernel] = ["bilinear", "bicubic"]
PAGE = mmap.PAGESIZE


@pytest.fixture(scope="module")
def kernel_of_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """Compiles the kernel from its current source, so that the tests do not use an older build."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc)")
    library = tmp_path_factory.mktemp("kernel") / "resize.so"
    command = [compiler, "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(SOURCE), "-o", str(library)], check=True)
    found = load(str(library))
    if found is None:
        pytest.skip("the processor lacks AVX-512 VBMI or VNNI, which the compiled resize needs")
    return found


@pytest.fixture
def taken(kernel_of_source: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records whether the compiled kernel handled each call."""
    calls: list[bool] = []

    def kernel(*arguments: object) -> int:
        calls.append(bool(kernel_of_source(*arguments)))
        return calls[-1]

    monkeypatch.setattr(resizing, "compiled", lambda: kernel)
    return calls


def torchs(pictures: Tensor, size: tuple[int, int], kernel: Kernel) -> Tensor:
    return functional.interpolate(pictures, size, mode=kernel, antialias=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_bits_are_torchs(taken: list[bool], kernel: Kernel) -> None:
    """The crops are enlarged and reduced by any factors, along one side or both; a cubic kernel overshoots at their hard edges."""
    draw = random.Random(0)
    for turn in range(400):
        height, width, *size = (draw.randint(1, draw.choice([20, 90, 400])) for _ in range(4))
        if turn % 10 == 0:
            size[turn % 20 // 10] = (height, width)[turn % 20 // 10]  # this side keeps its length
        channels, count = draw.choice([1, 3, 3, 4]), draw.choice([1, 3])
        whole = torch.randint(0, 256, (count, channels, height + 5, width + 7), dtype=torch.uint8)
        if turn % 3 == 0:
            whole = (whole > 127).to(torch.uint8) * 255
        whole = whole.contiguous(memory_format=torch.channels_last)
        part = whole.permute(0, 2, 3, 1).contiguous()[:, 2 : 2 + height, 3 : 3 + width].permute(0, 3, 1, 2)
        assert torch.equal(resize(part, (size[0], size[1]), kernel), torchs(part, (size[0], size[1]), kernel)), (part.shape, size)
    assert sum(taken) > 250


@pytest.mark.parametrize(("side", "out"), [(1800, 224), (5, 500), (224 * 5, 224), (49, 48), (97, 96), (2, 1)])
def test_large_steps_and_small_ones(taken: list[bool], side: int, out: int) -> None:
    part = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    assert torch.equal(resize(part, (out, out), "bilinear"), torchs(part, (out, out), "bilinear"))
    assert taken == [side < 1800]  # torch computes a reduction to an eighth


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_width(taken: list[bool], channels: int) -> None:
    """The inputs of an output pixel end at every byte of a vector window, and beyond it."""
    for width in range(34, 600):
        row = torch.randint(0, 256, (1, 1, width, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
        assert torch.equal(resize(row, (1, 33), "bilinear"), torchs(row, (1, 33), "bilinear")), width
    assert {True, False} == set(taken)


def guarded(size: int) -> Tensor:
    """Returns bytes that are followed by memory that can be neither read nor written."""
    pages = -(-size // PAGE) + 1
    memory = mmap.mmap(-1, pages * PAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert libc.mprotect(whole.data_ptr() + (pages - 1) * PAGE, PAGE, 0) == 0
    return whole[(pages - 1) * PAGE - size : (pages - 1) * PAGE]


@pytest.mark.parametrize(
    ("height", "width", "size"), [(30, 41, (19, 23)), (9, 7, (64, 65)), (120, 100, (30, 100)), (40, 130, (40, 31))]
)
def test_no_byte_outside_is_read_or_written(taken: list[bool], height: int, width: int, size: tuple[int, int]) -> None:
    """A memory fault ends only a child process, which calls no function of torch that would start threads."""
    pictures = guarded(2 * height * width * 3).view(2, height, width, 3).permute(0, 3, 1, 2)
    pictures.copy_(torch.randint(0, 256, pictures.shape, dtype=torch.uint8))
    expected = torchs(pictures, size, "bicubic")

    def resize_at_the_edge() -> None:
        around = torch.full((2 * size[0] * size[1] * 3 + 64,), 7, dtype=torch.uint8)
        for memory in (guarded(2 * size[0] * size[1] * 3), around[64:]):
            result = memory.view(2, *size, 3).permute(0, 3, 1, 2)
            resize_into(result, pictures, "bicubic")
            assert torch.equal(result, expected)
        assert (around[:64] == 7).all()
        assert taken == [True, True]

    child = multiprocessing.get_context("fork").Process(target=resize_at_the_edge)
    child.start()
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("there", [True, False])
def test_any_memory_will_do(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, there: bool, kernel: Kernel) -> None:
    """The images are planar, transposed or interleaved, and parts of a batch; the compiled kernel is present or not."""
    request.getfixturevalue("taken") if there else monkeypatch.setattr(resizing, "compiled", lambda: None)
    planes = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    by_pixel = planes.contiguous(memory_format=torch.channels_last)
    expected = torchs(planes, (24, 30), kernel)
    third = torch.stack([255 - planes, planes, planes], -1)[..., 1]  # strided like interleaved channels, but planar
    for pictures in (planes, by_pixel, planes.transpose(2, 3).contiguous().transpose(2, 3), third):
        assert torch.equal(resize(pictures, (24, 30), kernel), expected)
        for result in (
            torch.zeros(2, 3, 24, 30, dtype=torch.uint8),
            torch.zeros(2, 24, 30, 3, dtype=torch.uint8).permute(0, 3, 1, 2),
        ):
            resize_into(result, pictures, kernel)
            assert torch.equal(result, expected)


def test_which_kernel_is_said(monkeypatch: pytest.MonkeyPatch, taken: list[bool]) -> None:
    assert resizing.kernel_in_use() == "compiled"
    monkeypatch.setattr(resizing, "compiled", lambda: None)
    assert resizing.kernel_in_use().startswith("torch's")


def test_what_has_the_size_is_left_alone() -> None:
    picture = torch.zeros(1, 3, 8, 9, dtype=torch.uint8)
    assert resize(picture, (8, 9), "bicubic") is picture


def test_a_library_of_another_machine_is_no_kernel(tmp_path: Path) -> None:
    (tmp_path / "resize.so").write_bytes(b"\xcf\xfa\xed\xfe")
    assert load(str(tmp_path / "resize.so")) is None
