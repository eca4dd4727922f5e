"""One training update runs code from only a few files of this project, so that readers can follow it."""

from __future__ import annotations

from conftest import reset_accelerate

MOST = 20


def test_one_update_of_the_image_recipe_passes_through_few_files() -> None:
    from benchmarks.files_per_update import files_of_an_update

    reset_accelerate()
    found = [str(path) for path in files_of_an_update("image_mae", [])]
    reset_accelerate()
    assert {"mmm/train/loop.py", "mmm/model.py", "mmm/data/loading/loader.py"} <= set(found)  # an update was traced
    assert len(found) <= MOST, found
